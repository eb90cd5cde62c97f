//! How fast each migration went, second by second.
//!
//! In: views as they change. Out: the samples of one. Promise: at most [`MIGRATIONS_MAX`] migrations with
//! [`SAMPLES_MAX`] samples each; a longer one keeps its whole course, at half the detail.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::jobs::MigrationView;

/// Migrations remembered; the one that began first is forgotten first.
pub const MIGRATIONS_MAX: usize = 64;
/// Samples of each.
pub const SAMPLES_MAX: usize = 240;

/// One moment of a migration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since it began.
    pub at_ms: u64,
    /// Taken from the hypervisor.
    pub throughput_bytes_per_s: f64,
    /// Dirtied by the guest; none: not known yet.
    pub dirty_bytes_per_s: Option<f64>,
}

struct Course {
    id: String,
    /// Between two samples, at least.
    step_ms: u64,
    samples: Vec<Sample>,
}

/// The courses of the last migrations.
#[derive(Default)]
pub struct History {
    courses: Mutex<VecDeque<Course>>,
}

impl History {
    /// Takes a view in.
    pub fn take(&self, view: &MigrationView) {
        if view.state.is_final() {
            return;
        }
        let mut courses = self.courses.lock().unwrap_or_else(PoisonError::into_inner);
        let known = courses.iter().position(|course| course.id == view.id);
        let place = known.unwrap_or_else(|| {
            if courses.len() >= MIGRATIONS_MAX {
                courses.pop_front();
            }
            courses.push_back(Course {
                id: view.id.clone(),
                step_ms: 500,
                samples: Vec::new(),
            });
            courses.len() - 1
        });
        let course = &mut courses[place];
        let due = course
            .samples
            .last()
            .is_none_or(|last| view.total_ms >= last.at_ms + course.step_ms);
        if !due {
            return;
        }
        if course.samples.len() >= SAMPLES_MAX {
            let mut keep = false;
            course.samples.retain(|_| {
                keep = !keep;
                keep
            });
            course.step_ms *= 2;
        }
        course.samples.push(Sample {
            at_ms: view.total_ms,
            throughput_bytes_per_s: view.rates.hypervisor_bytes_per_s,
            dirty_bytes_per_s: view.rates.dirty_bytes_per_s,
        });
    }

    /// The samples of a migration, the oldest first.
    #[must_use]
    pub fn of(&self, id: &str) -> Vec<Sample> {
        let courses = self.courses.lock().unwrap_or_else(PoisonError::into_inner);
        let found = courses.iter().find(|course| course.id == id);
        found.map_or_else(Vec::new, |course| course.samples.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::record::tests::view;

    #[test]
    fn a_long_course_is_kept_whole_and_memory_is_bounded() {
        let history = History::default();
        let mut view = view();
        for second in 0..10_000 {
            view.total_ms = second * 1_000;
            view.rates.hypervisor_bytes_per_s = second as f64;
            history.take(&view);
            history.take(&view);
        }
        let samples = history.of(&view.id);
        assert!((SAMPLES_MAX / 2..=SAMPLES_MAX).contains(&samples.len()));
        assert_eq!(samples[0].at_ms, 0);
        assert!(samples[samples.len() - 1].at_ms > 9_900_000);
        assert!(samples.windows(2).all(|two| two[0].at_ms < two[1].at_ms));
        for number in 0..MIGRATIONS_MAX {
            view.id = format!("other{number}");
            history.take(&view);
        }
        assert_eq!(history.courses.lock().unwrap().len(), MIGRATIONS_MAX);
        assert!(history.of("other0").len() == 1 && history.of("nobody").is_empty());
    }
}
