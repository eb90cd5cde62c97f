//! The main channel: prologue, sections and commands.
//!
//! In: the bytes from source to destination on the channel that starts with `QEVM`; out: steps for
//! the tokeniser, and the marks of a migration's progress.
//! Promises: a section is entered only if its length can be known; everything behind RAM END that
//! cannot be walked is opaque, which is the expected end and no loss.
//!
//! File version 3. A section is a type byte, a be32 section id, for START and FULL a name, be32
//! instance and be32 version, then a payload without length, then a footer: 0x7e and the id again.

use arrayvec::ArrayVec;

use super::{
    LostSync, TokenBuf,
    channel::FILE_MAGIC,
    iterable,
    ram::{Ram, Run},
    reader::{Env, Reader, Step, Walk},
    token::PAGE_BITS,
};

const FILE_VERSION: u32 = 3;
const EOF: u8 = 0x00;
const START: u8 = 0x01;
const PART: u8 = 0x02;
const END: u8 = 0x03;
const FULL: u8 = 0x04;
const SUBSECTION: u8 = 0x05;
const VMDESCRIPTION: u8 = 0x06;
const CONFIGURATION: u8 = 0x07;
pub(super) const COMMAND: u8 = 0x08;
const FOOTER: u8 = 0x7e;

const CMD_POSTCOPY_ADVISE: u16 = 3;
const CMD_POSTCOPY_LISTEN: u16 = 4;
const CMD_POSTCOPY_RUN: u16 = 5;
const CMD_PACKAGED: u16 = 7;
const CMD_SWITCHOVER_START: u16 = 11;
/// LISTEN and RUN as they stand in the package, without payload.
const LISTEN: [u8; 5] = [COMMAND, 0, CMD_POSTCOPY_LISTEN as u8, 0, 0];
const RUN: [u8; 5] = [COMMAND, 0, CMD_POSTCOPY_RUN as u8, 0, 0];

const RAM_VERSION: u32 = 4;
/// Iterable sections tracked; RAM, bitmaps and one per VFIO device.
const MAX_SECTIONS: usize = 64;
/// Longest machine type name accepted.
const MAX_MACHINE_NAME_BYTES: u32 = 255;
/// Most capabilities in the configuration; only two exist.
const MAX_CAPABILITIES: u32 = 4;

/// A section that comes in parts and whose payload can be walked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ram,
    DirtyBitmap,
    Vfio,
}

/// The section being parsed.
#[derive(Clone, Copy)]
struct Open {
    id: u32,
    kind: Option<Kind>,
    /// START, PART, END or FULL.
    part: u8,
}

/// The position in the stream's grammar.
enum At {
    Magic,
    /// Behind the magic: a configuration section or the first section.
    Configuration,
    /// Behind the configuration: its subsections or the first section.
    ConfigurationRest,
    /// Where a section or command starts.
    Boundary,
    Payload(Open),
    Footer(Open),
    /// At the first byte of a package of so many bytes.
    Package(u32),
    /// Where the package's last command is due: RUN.
    PackageEnd,
    BehindEof,
}

/// Parser for the main channel.
pub(super) struct Sections {
    at: At,
    ram: Ram,
    known: ArrayVec<(u32, Kind), MAX_SECTIONS>,
    /// A whole command behind RUN was passed.
    behind_run: bool,
    /// The stream began in its middle: RAM was announced on another connection, and so were its blocks.
    resumed: bool,
}

impl Sections {
    pub fn new() -> Self {
        Self {
            at: At::Magic,
            ram: Ram::default(),
            known: ArrayVec::new(),
            behind_run: false,
            resumed: false,
        }
    }

    /// A parser for a stream that goes on where another connection broke, in post-copy.
    pub fn resumed() -> Self {
        Self {
            at: At::Boundary,
            ram: Ram::resumed(),
            resumed: true,
            ..Self::new()
        }
    }

    /// Cuts a run of plain RAM records, if that is where the stream is.
    pub fn run(&self, buf: &[u8], out: &mut TokenBuf) -> Run {
        match self.at {
            At::Payload(Open {
                kind: Some(Kind::Ram),
                ..
            }) => self.ram.run(buf, out),
            _ => Run::default(),
        }
    }

    /// Decides what comes next, or asks for more bytes.
    pub fn step(&mut self, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        match self.at {
            At::Magic => self.magic(head),
            At::Configuration if *head.first()? == CONFIGURATION => self.configuration(head),
            At::ConfigurationRest if *head.first()? == SUBSECTION => self.subsection(head),
            At::Configuration | At::ConfigurationRest | At::Boundary => self.boundary(head, env),
            At::Payload(open) => self.payload(open, head, env),
            At::Footer(open) => self.footer(open, head, env),
            At::Package(bytes) => self.package(bytes, head, env),
            At::PackageEnd => self.package_end(head, env),
            At::BehindEof => self.description(head),
        }
    }

    fn raw_to(&mut self, at: At, head: usize, skip: u64) -> Option<Step> {
        self.at = at;
        Some(Step::Raw { head, skip })
    }

    fn magic(&mut self, head: &[u8]) -> Option<Step> {
        let mut r = Reader::new(head);
        if (r.be32()?, r.be32()?) != (FILE_MAGIC, FILE_VERSION) {
            return Some(Step::Lost(LostSync::Prologue));
        }
        self.raw_to(At::Configuration, r.pos(), 0)
    }

    fn configuration(&mut self, head: &[u8]) -> Option<Step> {
        let mut r = Reader::new(head);
        r.u8()?;
        let name_bytes = r.be32()?;
        if name_bytes > MAX_MACHINE_NAME_BYTES {
            return Some(Step::Lost(LostSync::Configuration));
        }
        self.raw_to(At::ConfigurationRest, r.pos(), u64::from(name_bytes))
    }

    fn subsection(&mut self, head: &[u8]) -> Option<Step> {
        let mut r = Reader::new(head);
        r.u8()?;
        let name = r.counted()?;
        r.be32()?; // version
        match name {
            b"configuration/target-page-bits" => {
                if r.be32()? != PAGE_BITS {
                    return Some(Step::Lost(LostSync::PageSize));
                }
            }
            b"configuration/capabilities" => {
                let count = r.be32()?;
                if count > MAX_CAPABILITIES {
                    return Some(Step::Lost(LostSync::Configuration));
                }
                let mut ignore_shared = false;
                for _ in 0..count {
                    match r.counted()? {
                        b"x-ignore-shared" => ignore_shared = true,
                        b"mapped-ram" => return Some(Step::Lost(LostSync::MappedRam)),
                        _ => return Some(Step::Lost(LostSync::Configuration)),
                    }
                }
                self.ram.ignore_shared |= ignore_shared;
            }
            b"configuration/uuid" => {
                r.array::<16>()?;
            }
            _ => return Some(Step::Lost(LostSync::Configuration)),
        }
        self.raw_to(At::ConfigurationRest, r.pos(), 0)
    }

    fn boundary(&mut self, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        let mut r = Reader::new(head);
        let kind = r.u8()?;
        env.facts.postcopy_settled |= self.behind_run;
        match kind {
            EOF => {
                env.facts.eof_section_seen = true;
                self.raw_to(At::BehindEof, r.pos(), 0)
            }
            part @ (START | FULL) => self.first_part(part, r, env),
            part @ (PART | END) => {
                let id = r.be32()?;
                if self.resumed && self.known.is_empty() {
                    // RAM is all that is left to send, but for bitmaps at the very end.
                    self.known.push((id, Kind::Ram));
                    env.facts.in_ram = true;
                }
                match self.known.iter().find(|(known, _)| *known == id) {
                    Some(&(_, kind)) => {
                        env.facts.ram_end_begun |= part == END && kind == Kind::Ram;
                        let open = Open {
                            id,
                            kind: Some(kind),
                            part,
                        };
                        self.raw_to(At::Payload(open), r.pos(), 0)
                    }
                    None => Some(unknown_section(env)),
                }
            }
            COMMAND => self.command(r, env),
            _ => Some(unknown_section(env)),
        }
    }

    fn first_part(&mut self, part: u8, mut r: Reader<'_>, env: &mut Env<'_>) -> Option<Step> {
        let id = r.be32()?;
        let name = r.counted()?;
        r.be32()?; // instance
        let version = r.be32()?;
        let kind = match (part, name) {
            (START, b"ram") if version == RAM_VERSION => Some(Kind::Ram),
            (START, b"dirty-bitmap") => Some(Kind::DirtyBitmap),
            (START, name) if name.ends_with(b"/vfio") => Some(Kind::Vfio),
            (FULL, name) if name.ends_with(b"/virtio-mem-device-early") => None,
            _ => return Some(unknown_section(env)),
        };
        if let Some(kind) = kind {
            if self.known.iter().any(|(known, _)| *known == id) {
                return Some(unknown_section(env));
            }
            if self.known.try_push((id, kind)).is_err() {
                return Some(Step::Lost(LostSync::TooManySections));
            }
            env.facts.in_ram |= kind == Kind::Ram;
        }
        self.raw_to(At::Payload(Open { id, kind, part }), r.pos(), 0)
    }

    fn payload(&mut self, open: Open, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        let walk = match open.kind {
            Some(Kind::Ram) => self.ram.step(head, env)?,
            Some(Kind::DirtyBitmap) => iterable::dirty_bitmap(head)?,
            Some(Kind::Vfio) => iterable::vfio(head)?,
            None => {
                let step = iterable::virtio_mem_early(head)?;
                self.at = At::Footer(open);
                Walk::Step(step)
            }
        };
        match walk {
            Walk::Step(step) => Some(step),
            Walk::End { head } => self.raw_to(At::Footer(open), head, 0),
        }
    }

    fn footer(&mut self, open: Open, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        let mut r = Reader::new(head);
        if r.u8()? != FOOTER || r.be32()? != open.id {
            return Some(Step::Lost(LostSync::Footer));
        }
        match (open.kind, open.part) {
            (Some(Kind::Ram), PART) => env.facts.rounds += 1,
            (Some(Kind::Ram), END) => {
                env.facts.in_ram = false;
                env.facts.ram_end_seen = true;
            }
            _ => {}
        }
        self.raw_to(At::Boundary, r.pos(), 0)
    }

    fn command(&mut self, mut r: Reader<'_>, env: &mut Env<'_>) -> Option<Step> {
        let command = r.be16()?;
        let mut skip = u64::from(r.be16()?);
        match command {
            CMD_POSTCOPY_ADVISE => {
                if skip == 16 {
                    self.ram.page_sizes = r.be64()?;
                    skip = 8; // target page size
                }
                env.facts.postcopy_advised = true;
            }
            CMD_POSTCOPY_LISTEN => env.facts.postcopy_listen_seen = true,
            CMD_POSTCOPY_RUN => {
                env.facts.postcopy_listen_seen = true;
                env.facts.postcopy_run_seen = true;
            }
            CMD_PACKAGED => {
                if skip != 4 {
                    return Some(unknown_section(env));
                }
                // The blob lies behind the command and outside its length. It is used for the
                // post-copy hand-over only: LISTEN, device state, RUN.
                let bytes = r.be32()?;
                env.facts.postcopy_listen_seen = true;
                return self.raw_to(At::Package(bytes), r.pos(), 0);
            }
            CMD_SWITCHOVER_START => env.facts.switchover_start_seen = true,
            _ => {}
        }
        self.behind_run |= env.facts.postcopy_run_seen && command != CMD_POSTCOPY_RUN;
        self.raw_to(At::Boundary, r.pos(), skip)
    }

    /// A package as the switch to post-copy makes it: LISTEN, device state that nobody can walk, RUN.
    fn package(&mut self, bytes: u32, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        let commands = (LISTEN.len() + RUN.len()) as u32;
        let Some(state_bytes) = bytes.checked_sub(commands) else {
            return self.raw_to(At::Boundary, 0, u64::from(bytes));
        };
        if *head.first_chunk()? != LISTEN {
            return self.raw_to(At::Boundary, 0, u64::from(bytes));
        }
        env.facts.postcopy_listen_seen = true;
        self.raw_to(At::PackageEnd, LISTEN.len(), u64::from(state_bytes))
    }

    fn package_end(&mut self, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        env.facts.postcopy_run_seen |= *head.first_chunk()? == RUN;
        self.raw_to(At::Boundary, RUN.len(), 0)
    }

    /// Behind EOF: the JSON description, read by nobody.
    fn description(&mut self, head: &[u8]) -> Option<Step> {
        let mut r = Reader::new(head);
        if r.u8()? != VMDESCRIPTION {
            return Some(Step::Opaque);
        }
        let json_bytes = r.be32()?;
        self.raw_to(At::BehindEof, r.pos(), u64::from(json_bytes))
    }
}

/// Device sections have no length. Behind RAM END that is the normal end of what can be walked.
fn unknown_section(env: &Env<'_>) -> Step {
    if env.facts.ram_end_seen {
        Step::Opaque
    } else {
        Step::Lost(LostSync::UnknownSection)
    }
}
