//! From TOML to a [`Profile`]. In: text. Out: a profile or the first thing that is wrong with it.

use toml::Spanned;

use super::raw::{Amount, Raw, RawHugepages, RawNic, Table};
use super::{At, Bind, Hugepages, NicName, Nodes, Profile, ProfileError, QueueCores, Queues, Ring};
use crate::cores::CoreSet;

/// Longest profile.
pub const PROFILE_BYTES_MAX: usize = 32 << 10;
/// The kernel's own limits of an MTU: an IPv4 packet, and the length field of an IP header.
const MTU_BYTES: std::ops::RangeInclusive<u32> = 68..=65_535;
/// No driver takes longer rings.
const RING_MAX: u32 = 1 << 16;
/// No driver has more queues.
const QUEUES_MAX: u32 = 4096;
/// What the PCI standard allows a function.
const VFS_MAX: u32 = 65_535;
/// 64 TiB in pages of 2 MiB.
const PAGES_MAX: u32 = 1 << 25;
/// Longest name of an interface: the kernel's limit.
const INTERFACE_CHARS_MAX: usize = 15;

/// The text, for finding lines.
struct Source<'a>(&'a str);

impl Source<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = self.0.as_bytes().get(..offset).unwrap_or(self.0.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn at<T>(&self, value: Spanned<T>) -> At<T> {
        At {
            line: self.line(value.span().start),
            value: value.into_inner(),
        }
    }

    /// A value within a range.
    fn within(
        &self,
        key: &str,
        value: Option<Spanned<u32>>,
        range: &std::ops::RangeInclusive<u32>,
    ) -> Result<Option<At<u32>>, ProfileError> {
        let Some(value) = value.map(|value| self.at(value)) else {
            return Ok(None);
        };
        in_range(key, value.value, value.line, range)?;
        Ok(Some(value))
    }
}

fn in_range(
    key: &str,
    value: u32,
    line: usize,
    range: &std::ops::RangeInclusive<u32>,
) -> Result<(), ProfileError> {
    if range.contains(&value) {
        return Ok(());
    }
    let (min, max) = (range.start(), range.end());
    refuse(line, format!("{key} = {value} is outside {min} to {max}"))
}

fn refuse<T>(line: usize, problem: impl Into<String>) -> Result<T, ProfileError> {
    Err(ProfileError {
        line,
        problem: problem.into(),
    })
}

impl<T> At<T> {
    fn try_map<U>(
        self,
        map: impl FnOnce(T, usize) -> Result<U, ProfileError>,
    ) -> Result<At<U>, ProfileError> {
        Ok(At {
            value: map(self.value, self.line)?,
            line: self.line,
        })
    }
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// [`ProfileError`] with the line.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        if text.len() > PROFILE_BYTES_MAX {
            return refuse(1, format!("longer than {PROFILE_BYTES_MAX} bytes"));
        }
        let source = Source(text);
        let raw: Raw = toml::from_str(text).map_err(|error| ProfileError {
            line: source.line(error.span().map_or(0, |span| span.start)),
            problem: error.message().to_owned(),
        })?;
        let profile = Self {
            name: raw.name,
            nic: nic(&source, raw.nic)?,
            bind: raw
                .driver
                .0
                .bind
                .map(|bind| source.at(bind).try_map(|word, line| bound(&word, line)))
                .transpose()?,
            mtu: source.within("mtu", raw.link.0.mtu, &MTU_BYTES)?,
            up: raw.link.0.up.map(|up| source.at(up)),
            rx_ring: ring(&source, "rx", raw.rings.0.rx)?,
            tx_ring: ring(&source, "tx", raw.rings.0.tx)?,
            queues: raw
                .queues
                .0
                .count
                .map(|count| source.at(count).try_map(queues))
                .transpose()?,
            queue_cores: raw
                .queues
                .0
                .cores
                .map(|cores| {
                    source
                        .at(cores)
                        .try_map(|text, line| queue_cores(&text, line))
                })
                .transpose()?,
            offloads: raw
                .offloads
                .into_iter()
                .map(|(name, on)| (name, source.at(on)))
                .collect(),
            vfs: source.within("vfs", raw.sriov.0.vfs, &(0..=VFS_MAX))?,
            hugepages: raw
                .hugepages
                .map(|pages| hugepages(&source, pages.0))
                .transpose()?,
            isolated: raw
                .cores
                .0
                .isolated
                .map(|cores| {
                    source
                        .at(cores)
                        .try_map(|text, line| list("isolated", &text, line))
                })
                .transpose()?,
        };
        profile.fits_together()?;
        Ok(profile)
    }

    fn fits_together(&self) -> Result<(), ProfileError> {
        if let Some(At {
            value: Queues::Cores,
            line,
        }) = &self.queues
            && self.queue_cores.is_none()
        {
            return refuse(
                *line,
                "count = \"cores\" needs `cores` beside it: \"node\" or a list",
            );
        }
        if self.bind.as_ref().map(|bind| bind.value) != Some(Bind::VfioPci) {
            return Ok(());
        }
        if let NicName::Interface(name) = &self.nic.value {
            return refuse(
                self.nic.line,
                format!("interface {name} is gone once vfio-pci has the NIC: name it by `pci`"),
            );
        }
        let kernels = [
            ("mtu", self.mtu.as_ref().map(|at| at.line)),
            ("up", self.up.as_ref().map(|at| at.line)),
            ("rings.rx", self.rx_ring.as_ref().map(|at| at.line)),
            ("rings.tx", self.tx_ring.as_ref().map(|at| at.line)),
            ("queues.count", self.queues.as_ref().map(|at| at.line)),
            ("queues.cores", self.queue_cores.as_ref().map(|at| at.line)),
            ("offloads", self.offloads.values().map(|at| at.line).min()),
            ("sriov.vfs", self.vfs.as_ref().map(|at| at.line)),
        ];
        for (key, line) in kernels {
            if let Some(line) = line {
                return refuse(
                    line,
                    format!(
                        "{key} is a setting of the kernel's driver, but bind = \"vfio-pci\" takes the NIC from it: remove {key}, or bind = \"kernel\""
                    ),
                );
            }
        }
        Ok(())
    }
}

fn nic(source: &Source<'_>, raw: Spanned<Table<RawNic>>) -> Result<At<NicName>, ProfileError> {
    let raw = source.at(raw);
    match (raw.value.0.pci, raw.value.0.interface) {
        (Some(pci), None) => source.at(pci).try_map(|text, line| {
            text.parse()
                .map(NicName::Pci)
                .or_else(|error| refuse(line, format!("pci = {error}")))
        }),
        (None, Some(name)) => source.at(name).try_map(|name, line| {
            let plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
            let fits = (1..=INTERFACE_CHARS_MAX).contains(&name.len());
            if fits && name.chars().all(plain) && name != "." && name != ".." {
                Ok(NicName::Interface(name))
            } else {
                refuse(
                    line,
                    format!("interface = {name:?} is no name of an interface"),
                )
            }
        }),
        _ => refuse(raw.line, "[nic] needs exactly one of `pci` and `interface`"),
    }
}

fn bound(word: &str, line: usize) -> Result<Bind, ProfileError> {
    match word {
        "kernel" => Ok(Bind::Kernel),
        "vfio-pci" => Ok(Bind::VfioPci),
        _ => refuse(
            line,
            format!("bind = {word:?} is neither \"kernel\" nor \"vfio-pci\""),
        ),
    }
}

fn ring(
    source: &Source<'_>,
    key: &str,
    value: Option<Spanned<Amount>>,
) -> Result<Option<At<Ring>>, ProfileError> {
    let ring = |amount, line| match amount {
        Amount::Number(number) => {
            in_range(key, number, line, &(1..=RING_MAX))?;
            Ok(Ring::Descriptors(number))
        }
        Amount::Word(word) if word == "max" => Ok(Ring::Max),
        Amount::Word(word) => refuse(
            line,
            format!("{key} = {word:?} is neither a number nor \"max\""),
        ),
    };
    value
        .map(|value| source.at(value).try_map(ring))
        .transpose()
}

fn queues(amount: Amount, line: usize) -> Result<Queues, ProfileError> {
    match amount {
        Amount::Number(number) => {
            in_range("count", number, line, &(1..=QUEUES_MAX))?;
            Ok(Queues::Count(number))
        }
        Amount::Word(word) if word == "cores" => Ok(Queues::Cores),
        Amount::Word(word) => refuse(
            line,
            format!("count = {word:?} is neither a number nor \"cores\""),
        ),
    }
}

fn queue_cores(text: &str, line: usize) -> Result<QueueCores, ProfileError> {
    if text == "node" {
        return Ok(QueueCores::Node);
    }
    list("cores", text, line).map(QueueCores::List)
}

fn hugepages(source: &Source<'_>, raw: RawHugepages) -> Result<Hugepages, ProfileError> {
    let size_kib = source.at(raw.size_kib);
    if !size_kib.value.is_power_of_two() {
        return refuse(
            size_kib.line,
            format!(
                "size_kib = {} is no page size; usual ones are 2048 and 1048576",
                size_kib.value
            ),
        );
    }
    let pages = source.at(raw.pages);
    in_range("pages", pages.value, pages.line, &(1..=PAGES_MAX))?;
    let nodes = match raw.nodes {
        None => At {
            value: Nodes::Nic,
            line: size_kib.line,
        },
        Some(nodes) => source.at(nodes).try_map(|text, line| match text.as_str() {
            "nic" => Ok(Nodes::Nic),
            _ => list("nodes", &text, line).map(Nodes::List),
        })?,
    };
    Ok(Hugepages {
        size_kib,
        pages,
        nodes,
    })
}

fn list(key: &str, text: &str, line: usize) -> Result<CoreSet, ProfileError> {
    match text.parse::<CoreSet>() {
        Ok(set) if !set.is_empty() => Ok(set),
        Ok(_) => refuse(
            line,
            format!("{key} = \"\" names none: remove the key, or name some"),
        ),
        Err(_) => refuse(
            line,
            format!("{key} = {text:?} is no list of numbers, as in \"0-3,8\""),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: &str = "\
name = \"all\"
[nic]
pci = \"0000:3b:00.0\"
[driver]
bind = \"kernel\"
[link]
mtu = 9000
up = true
[rings]
rx = 4096
tx = \"max\"
[queues]
count = \"cores\"
cores = \"node\"
[offloads]
rx-lro = false
[sriov]
vfs = 4
[hugepages]
size_kib = 2048
pages = 512
nodes = \"0-1\"
[cores]
isolated = \"2-9\"
";

    #[test]
    fn everything_is_read_with_its_line() {
        let profile = Profile::parse(FULL).unwrap();
        let pci = "0000:3b:00.0".parse().unwrap();
        assert_eq!(
            profile.nic,
            At {
                value: NicName::Pci(pci),
                line: 3
            }
        );
        assert_eq!(
            profile.mtu,
            Some(At {
                value: 9000,
                line: 7
            })
        );
        assert_eq!(
            profile.rx_ring,
            Some(At {
                value: Ring::Descriptors(4096),
                line: 10
            })
        );
        assert_eq!(
            profile.tx_ring,
            Some(At {
                value: Ring::Max,
                line: 11
            })
        );
        assert_eq!(profile.queues.unwrap().value, Queues::Cores);
        assert_eq!(
            profile.offloads["rx-lro"],
            At {
                value: false,
                line: 16
            }
        );
        assert_eq!(
            profile.hugepages.unwrap().nodes,
            At {
                value: Nodes::List("0-1".parse().unwrap()),
                line: 22
            }
        );
        assert_eq!(profile.isolated.unwrap().line, 24);
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        let nic = "[nic]\ninterface = \"e0\"\n";
        let vfio = "[nic]\npci = \"0000:3b:00.0\"\n[driver]\nbind = \"vfio-pci\"\n";
        for (text, line, word) in [
            (String::new(), 1, "nic"),
            ("[nic]\n".into(), 1, "exactly one"),
            (
                "[nic]\npci = \"0000:3b:00.0\"\ninterface = \"e0\"\n".into(),
                1,
                "exactly one",
            ),
            ("[nic]\npci = \"3b:00.0\"\n".into(), 2, "no PCI address"),
            ("[nic]\ninterface = \"../x\"\n".into(), 2, "no name"),
            (format!("{nic}[link]\nmtuu = 1\n"), 4, "mtuu"),
            (format!("{nic}[lnk]\n"), 3, "lnk"),
            (
                format!("{nic}[link]\nmtu = 9000\nmtu = 1500\n"),
                5,
                "duplicate",
            ),
            (format!("{nic}[link]\nmtu = \"big\"\n"), 4, "expected u32"),
            (format!("{nic}[link]\nmtu = -1\n"), 4, "expected u32"),
            (format!("{nic}[link]\nmtu = 67\n"), 4, "68 to 65535"),
            (format!("{nic}[link]\nup = 1\n"), 4, "expected a boolean"),
            (format!("{nic}[driver]\nbind = \"uio\"\n"), 4, "vfio-pci"),
            (format!("{nic}[driver]\nbind = \"vfio-pci\"\n"), 2, "`pci`"),
            (format!("{nic}[rings]\nrx = 0\n"), 4, "1 to 65536"),
            (format!("{nic}[rings]\ntx = \"lots\"\n"), 4, "\"max\""),
            (format!("{nic}[rings]\ntx = -2\n"), 4, "out of range"),
            (
                format!("{nic}[rings]\ntx = 1.5\n"),
                4,
                "a whole number or a word",
            ),
            (format!("{nic}[queues]\ncount = \"cores\"\n"), 4, "`cores`"),
            (format!("{nic}[queues]\ncount = 0\n"), 4, "1 to 4096"),
            (format!("{nic}[queues]\n\ncores = \"9-2\"\n"), 5, "0-3,8"),
            (
                format!("{nic}[offloads]\nrx-gro = \"on\"\n"),
                4,
                "expected a boolean",
            ),
            (format!("{nic}[hugepages]\npages = 4\n"), 3, "size_kib"),
            (
                format!("{nic}[hugepages]\nsize_kib = 3000\npages = 4\n"),
                4,
                "page size",
            ),
            (
                format!("{nic}[hugepages]\nsize_kib = 2048\npages = 0\n"),
                5,
                "pages",
            ),
            (format!("{nic}[cores]\nisolated = \"\"\n"), 4, "names none"),
            (format!("{vfio}[link]\nmtu = 9000\n"), 6, "remove mtu"),
            (
                format!("{vfio}[offloads]\nrx-gro = true\n"),
                6,
                "remove offloads",
            ),
            (format!("{vfio}[sriov]\nvfs = 2\n"), 6, "remove sriov.vfs"),
            (format!("{nic}[link\n"), 3, ""),
        ] {
            let error = Profile::parse(&text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.problem.contains(word), "{text}: {error}");
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("profile line {line}: "))
            );
        }
        let long = "#".repeat(PROFILE_BYTES_MAX + 1);
        assert!(
            Profile::parse(&long)
                .unwrap_err()
                .problem
                .contains("longer")
        );
    }

    proptest! {
        #[test]
        fn no_text_is_trouble(cut in 0..FULL.len(), junk in "\\PC{0,8}") {
            let _ = Profile::parse(&format!("{}{junk}{}", &FULL[..cut], &FULL[cut..]));
        }
    }
}
