//! The place where the switch words lie.
//!
//! In: something to do with the words. Out: done, or nobody is attached. Promise: no detour; the
//! store to shared memory happens in the caller's thread.

use dwcp_api::switches::Switches;

use crate::host::Host;

/// No data plane is attached, so there are no words to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no data plane is attached; the setting is kept and applied when one attaches")]
pub struct NotAttached;

/// Gives access to the switch words of the attached data plane.
pub trait SwitchBoard: Send + Sync {
    /// Runs `act` on the words, in this thread.
    ///
    /// # Errors
    /// [`NotAttached`]; `act` did not run.
    fn with(&self, act: &mut dyn FnMut(&Switches)) -> Result<(), NotAttached>;

    /// Has the words looked at now: a worker that waits for its peer would see them only when that answers.
    fn hurry(&self);
}

impl SwitchBoard for Host {
    fn with(&self, act: &mut dyn FnMut(&Switches)) -> Result<(), NotAttached> {
        self.with_switches(act).map_err(|_| NotAttached)
    }

    fn hurry(&self) {
        self.ring();
    }
}
