//! Stacks with their counts, by name.
//!
//! In: addresses of calls by thread. Out: one entry for each different stack, outermost first: the
//! thread, then functions, with a label such as `[codec]` wherever another stage begins. Promise: the
//! counts add up to the samples.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dwcp_api::Stage;

use super::names::Names;
use super::stages;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    names: Vec<String>,
    stacks: BTreeMap<Vec<u32>, u64>,
}

impl Folded {
    /// Names what was sampled: each thread's name, the addresses of its calls innermost first, and how
    /// often they were found.
    pub(super) fn new<'c>(
        mut names: Names,
        sampled: impl Iterator<Item = (&'c str, &'c [u64], u64)>,
    ) -> Self {
        let mut stacks = BTreeMap::new();
        for (thread, calls, count) in sampled {
            let mut path = vec![names.number(thread.to_owned())];
            let mut current: Option<Stage> = None;
            for address in calls.iter().rev() {
                for function in names.at(*address).to_vec().into_iter().rev() {
                    let name = names
                        .all()
                        .get(function as usize)
                        .map_or("", String::as_str);
                    let stage = stages::next(current, name);
                    if let Some(begun) = stage.filter(|_| stage != current) {
                        path.push(names.number(stages::label(begun)));
                        current = stage;
                    }
                    path.push(function);
                }
            }
            *stacks.entry(path).or_insert(0) += count;
        }
        Self {
            names: names.all().to_vec(),
            stacks,
        }
    }

    /// Every stack, outermost first, and its count.
    pub(super) fn stacks(&self) -> impl Iterator<Item = (&[u32], u64)> {
        self.stacks
            .iter()
            .map(|(path, count)| (path.as_slice(), *count))
    }

    /// The name behind a number.
    pub(super) fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("", String::as_str)
    }

    /// Samples in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// Samples whose innermost stage is each of these.
    #[must_use]
    pub fn by_stage(&self) -> Vec<(Stage, u64)> {
        let of = |path: &[u32]| {
            let mut inside = path.iter().rev();
            inside.find_map(|number| stages::of_label(self.name(*number)))
        };
        let count = |stage: &Stage| {
            let here = self.stacks().filter(|(path, _)| of(path) == Some(*stage));
            (*stage, here.map(|(_, count)| count).sum())
        };
        Stage::ALL.iter().map(count).collect()
    }

    /// One line for each stack: names separated by semicolons, a blank, the count. The form that other
    /// tools for flame graphs read.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (path, count) in self.stacks() {
            let names: Vec<&str> = path.iter().map(|number| self.name(*number)).collect();
            let _ = writeln!(text, "{} {count}", names.join(";"));
        }
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Stacks given as text, as [`Folded::text`] writes it.
    pub(in super::super) fn read(text: &str) -> Folded {
        let mut names = Names::new(&[]);
        let mut stacks = BTreeMap::new();
        for line in text.lines() {
            let (path, count) = line.rsplit_once(' ').unwrap();
            let path = path.split(';').map(|name| names.number(name.to_owned()));
            stacks.insert(path.collect(), count.parse().unwrap());
        }
        Folded {
            names: names.all().to_vec(),
            stacks,
        }
    }

    #[test]
    fn counts_add_up_and_equal_stacks_are_one() {
        let calls: [(&str, &[u64], u64); 3] = [
            ("worker-0", &[1, 2], 3),
            ("worker-0", &[2, 2], 4),
            ("door", &[1], 5),
        ];
        let folded = Folded::new(Names::new(&[]), calls.into_iter());
        assert_eq!(folded.total(), 12);
        // No image has these addresses, so the first two stacks read the same.
        assert_eq!(
            folded.text(),
            "worker-0;[unknown];[unknown] 7\ndoor;[unknown] 5\n"
        );
    }

    #[test]
    fn a_sample_belongs_to_its_innermost_stage() {
        let folded = read(
            "worker-0;[engine];run;[transport];send;[codec];encode;ZSTD_c 5\n\
             worker-0;[engine];run;[transport];send 2\nworker-0;[engine];run;[vdso] 3\ndoor;poll 4",
        );
        let by_stage = folded.by_stage();
        let of = |stage| {
            by_stage
                .iter()
                .find(|(known, _)| *known == stage)
                .unwrap()
                .1
        };
        assert_eq!(of(Stage::Codec), 5);
        assert_eq!(of(Stage::Transport), 2);
        assert_eq!(of(Stage::Engine), 3);
        assert_eq!(of(Stage::Lanes), 0);
    }
}
