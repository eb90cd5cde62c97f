//! From a sample to the addresses of its calls.
//!
//! In: registers and a copy of the stack. Out: addresses, the innermost first. Promises: the tables that
//! compilers write for exceptions tell the way, so programs need no frame pointers and are built as they
//! would be anyway; only bytes of the copy are read; a stack has at most [`DEPTH_MAX`] calls.

use std::fs::File;
use std::os::unix::fs::FileExt;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, Unwinder as _};
use object::elf::PF_X;
use object::read::{ReadCache, ReadRef};
use object::{Object, ObjectSection, ObjectSegment, SegmentFlags};

use super::images::{Image, Source};
use super::sample::Sample;

/// Calls of one stack that are looked at.
const DEPTH_MAX: usize = 128;
const PAGE_BYTES: u64 = 4096;
/// Largest code of the kernel's own in a process.
const KERNEL_IMAGE_BYTES_MAX: u64 = 1 << 20;

/// A loaded image: its addresses less this are those of its file.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) image: Image,
    pub(super) bias: u64,
}

/// See the module.
pub(super) struct Unwinder {
    unwinder: UnwinderX86_64<Vec<u8>>,
    cache: CacheX86_64,
    loaded: Vec<Loaded>,
}

impl Unwinder {
    /// Reads the tables of these images; those that cannot be read are left out.
    pub(super) fn new(pid: u32, images: Vec<Image>) -> Self {
        let mut unwinder = UnwinderX86_64::new();
        let mut loaded = Vec::new();
        for image in images {
            let tables = match &image.source {
                Source::File(path) => File::open(path)
                    .ok()
                    .and_then(|file| tables(&ReadCache::new(file), &image)),
                Source::Kernel => own_code(pid, &image).and_then(|code| tables(&code[..], &image)),
            };
            let Some((bias, sections)) = tables else {
                tracing::debug!(image = image.name, "an image without tables for unwinding");
                continue;
            };
            let module = Module::new(image.name.clone(), image.range.clone(), bias, sections);
            unwinder.add_module(module);
            loaded.push(Loaded { image, bias });
        }
        Self {
            unwinder,
            cache: CacheX86_64::new(),
            loaded,
        }
    }

    /// The images that can be unwound.
    pub(super) fn loaded(&self) -> &[Loaded] {
        &self.loaded
    }

    /// Puts the calls of a sample behind what `calls` holds: first the kernel's, then the thread's own.
    pub(super) fn calls(&mut self, sample: &Sample<'_>, calls: &mut Vec<u64>) {
        calls.extend(sample.kernel());
        let Some(registers) = sample.registers else {
            return;
        };
        let mut read_stack = |address: u64| {
            let offset = address.checked_sub(registers.stack).ok_or(())?;
            let offset = usize::try_from(offset).map_err(|_| ())?;
            let bytes = offset
                .checked_add(8)
                .and_then(|end| sample.stack.get(offset..end))
                .ok_or(())?;
            Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| ())?))
        };
        let start = UnwindRegsX86_64::new(registers.code, registers.stack, registers.frame);
        let mut frames =
            self.unwinder
                .iter_frames(registers.code, start, &mut self.cache, &mut read_stack);
        // An end that is no end is one for us: what was found until then is right.
        while let Ok(Some(frame)) = frames.next() {
            calls.push(frame.address_for_lookup());
            if calls.len() >= DEPTH_MAX {
                break;
            }
        }
    }
}

/// Where an image was moved to, and what unwinding needs of it.
fn tables<'d>(
    data: impl ReadRef<'d>,
    image: &Image,
) -> Option<(u64, ExplicitModuleSectionInfo<Vec<u8>>)> {
    let object = object::File::parse(data).ok()?;
    let segment = object.segments().find(|segment| {
        let SegmentFlags::Elf { p_flags, .. } = segment.flags() else {
            return false;
        };
        // The kernel maps whole pages, so a mapping may begin a little before its segment.
        let (offset, bytes) = segment.file_range();
        let first = offset - offset % PAGE_BYTES;
        p_flags & PF_X != 0 && (first..offset.saturating_add(bytes)).contains(&image.file_offset)
    })?;
    let own = segment
        .address()
        .wrapping_sub(segment.file_range().0)
        .wrapping_add(image.file_offset);
    let bias = image.range.start.checked_sub(own)?;
    let range = |name| {
        let section = object.section_by_name(name)?;
        let start = section.address();
        Some(start..start.checked_add(section.size())?)
    };
    let data = |name| Some(object.section_by_name(name)?.data().ok()?.to_vec());
    let sections = ExplicitModuleSectionInfo {
        text_svma: range(".text"),
        text: data(".text"),
        got_svma: range(".got"),
        eh_frame_svma: range(".eh_frame"),
        eh_frame: Some(data(".eh_frame")?),
        eh_frame_hdr_svma: range(".eh_frame_hdr"),
        eh_frame_hdr: data(".eh_frame_hdr"),
        ..ExplicitModuleSectionInfo::default()
    };
    Some((bias, sections))
}

/// The kernel's code in the process, which is in no file.
fn own_code(pid: u32, image: &Image) -> Option<Vec<u8>> {
    let bytes = image.range.end.checked_sub(image.range.start)?;
    let bytes = usize::try_from(bytes.min(KERNEL_IMAGE_BYTES_MAX)).ok()?;
    let mut code = vec![0; bytes];
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    memory.read_exact_at(&mut code, image.range.start).ok()?;
    Some(code)
}
