//! The configuration of a migration NIC: what the machine has, what a profile wants of it, the
//! difference as a plan that a person can read, and the plan carried out so that it can be taken back.
//!
//! In: a profile in TOML, sysfs, procfs and netlink. Out: lists, plans, reports. Promises: nothing is
//! changed before everything is checked; each step is on disk before it is made, so that a revert
//! restores what was there even after a crash; the NIC that carries the default route or the host's
//! only management address is not touched.
//!
//! | module | what |
//! |---|---|
//! | [`inventory`] | the NICs of this machine |
//! | [`profile`] | what is wanted |
//! | [`plan`] | the difference, checked |
//! | [`guard`], [`limits`] | what is refused: the host's own way out, and what the hardware cannot do |
//! | [`change`] | one step: made, undone, looked at |
//! | [`driver`] | the step that swaps the driver |
//! | [`interrupts`] | queues and the cores that serve them |
//! | [`journal`] | steps on disk |
//! | [`apply`], [`revert`], [`verify`] | the plan at work |
//! | [`kernel`], [`linux`] | what the kernel is asked, and how |
//! | [`tree`], [`pci`], [`cores`] | sysfs files, PCI addresses, lists of cores |

pub mod apply;
pub mod change;
pub mod cores;
pub mod driver;
pub mod guard;
pub mod interrupts;
pub mod inventory;
pub mod journal;
pub mod kernel;
pub mod limits;
pub mod linux;
pub mod pci;
pub mod plan;
pub mod profile;
pub mod revert;
pub mod tree;
pub mod verify;
