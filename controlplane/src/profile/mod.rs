//! Where a running process spends its time: flame graphs and hardware counters, taken from outside.
//!
//! In: a process, for how long and how often. Out: stacks by name, a picture, counts. Promises: the process
//! runs the very code it would run anyway, and when nobody samples it nothing at all happens; every wait
//! and all memory is bounded; what this machine or our rights do not allow is a typed reason.
//!
//! The case. A data plane could sample itself: a timer signal, a handler that walks the stack. Then its
//! workers run a handler at any instruction, inside the allocator or a lock; system calls that sleep are
//! interrupted; the walk must read the stack and the tables of every library without a lock or an
//! allocation; and it is all in the process that must never stop. Here the kernel takes the sample when a
//! timer or a counter fires, with the registers and a piece of the stack, and this process, on its own
//! time, finds the calls by the tables that compilers write for exceptions, and the names by the symbols
//! and line tables. No frame pointers, no flags, no signal, no code of ours in the data plane: what can go
//! wrong, goes wrong here. The kernel's own functions, where a data plane spends half its time, come for
//! free. The price is a copy of [`event::STACK_BYTES`] in each sample, some microseconds at 99 samples a
//! second, and that this process needs the right to look: one user for both planes, or CAP_PERFMON and
//! CAP_SYS_PTRACE. The stack holds secrets; whoever may look at it could read the whole process anyway,
//! and only names of functions go out.
//!
//! | module | what |
//! |---|---|
//! | [`record`] | samples a process |
//! | [`event`], [`ring`], [`sample`] | what is asked of the kernel, and what it hands over |
//! | [`images`], [`unwind`] | from registers and stack to calls |
//! | [`names`], [`stages`], [`folded`] | from calls to names, with the stages between them |
//! | [`svg`] | the picture |
//! | [`hardware`] | the processor's counters |
//! | [`error`] | refusals with their cures |

mod error;
mod event;
mod folded;
mod hardware;
mod images;
mod names;
mod record;
mod ring;
mod sample;
mod stages;
mod svg;
mod unwind;

pub use error::ProfileError;
pub use event::Clock;
pub use folded::Folded;
pub use hardware::{Counts, ThreadCounts, count};
pub use record::{Profile, Request, record};
pub use svg::svg;
