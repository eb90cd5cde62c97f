//! From addresses to names.
//!
//! In: an address of a call. Out: the functions at it, the innermost first: more than one where the
//! compiler put one into another. Promises: an address without a name is named by its image; each address
//! is looked up once.

use std::collections::HashMap;
use std::fs;

use addr2line::Loader;

use super::images::Source;
use super::unwind::Loaded;

/// Addresses from here on are the kernel's.
const KERNEL_FROM: u64 = 1 << 63;
/// Put behind a name of the kernel, as other tools do.
const KERNEL_MARK: &str = "_[k]";
/// Longest name kept: some generic functions have names of several lines.
const NAME_CHARS_MAX: usize = 200;

/// Functions of the kernel by address.
#[derive(Default)]
struct KernelNames(Vec<(u64, String)>);

/// See the module.
pub(super) struct Names {
    images: Vec<(Loaded, Option<Loader>)>,
    kernel: Option<KernelNames>,
    known: HashMap<u64, Vec<u32>>,
    numbers: HashMap<String, u32>,
    names: Vec<String>,
}

impl Names {
    /// Names for addresses in these images.
    pub(super) fn new(loaded: &[Loaded]) -> Self {
        let open = |loaded: &Loaded| {
            let loader = match &loaded.image.source {
                Source::File(path) => Loader::new(path).ok(),
                Source::Kernel => None,
            };
            (loaded.clone(), loader)
        };
        Self {
            images: loaded.iter().map(open).collect(),
            kernel: None,
            known: HashMap::new(),
            numbers: HashMap::new(),
            names: Vec::new(),
        }
    }

    /// The numbers of the functions at an address, the innermost first.
    pub(super) fn at(&mut self, address: u64) -> &[u32] {
        if !self.known.contains_key(&address) {
            let names = self.find(address);
            let numbers = names.into_iter().map(|name| self.number(name)).collect();
            self.known.insert(address, numbers);
        }
        self.known.get(&address).map_or(&[], Vec::as_slice)
    }

    /// The number of a name.
    pub(super) fn number(&mut self, name: String) -> u32 {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    /// All names by number.
    pub(super) fn all(&self) -> &[String] {
        &self.names
    }

    fn find(&mut self, address: u64) -> Vec<String> {
        if address >= KERNEL_FROM {
            let kernel = self.kernel.get_or_insert_with(KernelNames::read);
            return vec![kernel.at(address)];
        }
        let image = self
            .images
            .iter()
            .find(|(loaded, _)| loaded.image.range.contains(&address));
        let Some((loaded, loader)) = image else {
            return vec!["[unknown]".to_owned()];
        };
        let own = address.wrapping_sub(loaded.bias);
        let found = loader
            .as_ref()
            .map(|loader| functions(loader, own))
            .unwrap_or_default();
        if found.is_empty() {
            return vec![format!("[{}]", loaded.image.name.trim_matches(['[', ']']))];
        }
        found
    }
}

fn functions(loader: &Loader, address: u64) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(mut frames) = loader.find_frames(address) {
        while let Ok(Some(frame)) = frames.next() {
            if let Some(name) = &frame.function
                && let Ok(name) = name.demangle()
            {
                found.push(tidy(&name));
            }
        }
    }
    if found.is_empty()
        && let Some(name) = loader.find_symbol(address)
    {
        found.push(tidy(&addr2line::demangle_auto(name.into(), None)));
    }
    found
}

/// A name that can stand in a line of names separated by semicolons.
fn tidy(name: &str) -> String {
    let clean = |c: char| match c {
        ';' => ',',
        c if c.is_control() => ' ',
        c => c,
    };
    name.chars().take(NAME_CHARS_MAX).map(clean).collect()
}

impl KernelNames {
    fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/kallsyms").unwrap_or_default())
    }

    /// Lines of an address, a kind and a name. Addresses are all zero for those who may not know them.
    fn parse(text: &str) -> Self {
        let mut all: Vec<(u64, String)> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
                (is_code && address >= KERNEL_FROM)
                    .then(|| Some((address, words.next()?.to_owned())))?
            })
            .collect();
        all.sort_unstable();
        Self(all)
    }

    fn at(&self, address: u64) -> String {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        match after.checked_sub(1).and_then(|at| self.0.get(at)) {
            Some((_, name)) => format!("{}{KERNEL_MARK}", tidy(name)),
            None => "[kernel]".to_owned(),
        }
    }
}

/// Is this a name of the kernel's?
pub(super) fn is_kernel(name: &str) -> bool {
    name.ends_with(KERNEL_MARK) || name == "[kernel]"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_functions_are_found_by_the_address_before() {
        let text = "ffffffff81000200 T second\nffffffff81000100 t first\n\
                    ffffffff81000180 d data\n0000000000001000 A low\nffffffff81000300 W third [module]\n";
        let names = KernelNames::parse(text);
        for (address, name) in [
            (0xffff_ffff_8100_0100, "first_[k]"),
            (0xffff_ffff_8100_01ff, "first_[k]"),
            (0xffff_ffff_8100_0200, "second_[k]"),
            (0xffff_ffff_8100_0999, "third_[k]"),
            (0xffff_ffff_8100_00ff, "[kernel]"),
        ] {
            assert_eq!(names.at(address), name);
            assert!(is_kernel(name));
        }
        // As it reads for somebody without rights.
        let hidden = KernelNames::parse("0000000000000000 T first\n0000000000000000 T second\n");
        assert_eq!(hidden.at(u64::MAX), "[kernel]");
    }

    #[test]
    fn names_are_safe_in_a_line() {
        assert_eq!(tidy("f<[u8; 4]>\n"), "f<[u8, 4]> ");
        assert_eq!(tidy(&"é".repeat(300)).chars().count(), NAME_CHARS_MAX);
    }

    #[test]
    fn a_name_has_one_number_and_an_address_without_image_a_name() {
        let mut names = Names::new(&[]);
        let first = names.number("a".to_owned());
        assert_eq!(names.number("a".to_owned()), first);
        let numbers = names.at(0x1000).to_vec();
        assert_eq!(names.all()[numbers[0] as usize], "[unknown]");
        assert_eq!(names.at(0x1000), numbers);
    }
}
