//! Which side runs the guest, and what follows. In: what is known of the data plane, of the source's
//! hypervisor and of the destination. Out: one action. A pure function, so that every row of its table
//! is a test.
//!
//! The rule behind the table: the source resumes only if its guest never stopped, or if the
//! destination has said that it does not run the guest and never will; the source is ended only if the
//! destination has said that it does. Everything else waits.

use super::view::GuestVerdict;

/// What holds the source hypervisor's connections open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The data plane: its session is undecided.
    Session,
    /// We do: the data plane is dead, its descriptors are in our escrow.
    Escrow,
    /// Nothing: the hypervisor has seen the end of its connection and does as it likes.
    Nothing,
}

/// The source's hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceGuest {
    /// The guest runs here.
    Running,
    /// The guest stands still in the middle of the hand-over.
    Stopped,
    /// The guest was given away in post-copy: this hypervisor has memory of it and cannot run it again.
    Postcopy,
    /// The hypervisor believes that the destination took over.
    HandedOver,
    /// The hypervisor is gone.
    Gone,
    /// The hypervisor exists but does not say.
    Silent,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the destination; it makes itself fail closed before it answers.
    Ask,
    /// Let the source have the guest: release its connections as failed, resume it if need be.
    Stay,
    /// The destination has the guest: end the source's hypervisor, then release its connections.
    Move,
    /// The destination has the guest and the source's hypervisor is gone or knows: release.
    Moved,
    /// Both may have run it: stop the source at once and call for an operator.
    Conflict,
    /// The guest is nowhere: the source's hypervisor ended by itself and the destination never ran.
    Lost,
    /// The source handed over and the destination's hypervisor ended before it ran the guest.
    Dropped,
    /// The guest runs at the destination with part of its memory: break the source's connections, which makes
    /// its hypervisor wait, and connect the two again.
    Recover,
    /// The source ended while the destination needed its memory.
    Torn,
    /// The source gave the guest away and the destination ended before it ran the guest.
    Stranded,
    /// Nothing can be said yet: hold everything and ask again.
    Wait,
}

/// Decides. `answer` is `None` until the destination was asked. `handed` says whether the source's
/// guest has ever been seen or may have been standing still for the hand-over.
#[must_use]
pub const fn decide(
    hold: Hold,
    source: SourceGuest,
    handed: bool,
    answer: Option<GuestVerdict>,
) -> Action {
    use GuestVerdict::{Here, HereInPart, NeverHere, Unknown};
    match (source, answer) {
        // It runs and its connections are held, so it never stopped: the rest of its state is still
        // inside it, and what the destination has is incomplete for ever.
        (SourceGuest::Running, None) if matches!(hold, Hold::Session | Hold::Escrow) || !handed => {
            Action::Stay
        }
        // It runs, but it may have stopped before and resumed when its connection ended.
        (_, None) => Action::Ask,
        (SourceGuest::Running, Some(Here | HereInPart)) => Action::Conflict,
        // A silent hypervisor is as a rule one that stopped its guest and waits for room in a connection
        // that nobody reads any more: only letting the connection go makes it speak again.
        (SourceGuest::Running | SourceGuest::Stopped | SourceGuest::Silent, Some(NeverHere)) => {
            Action::Stay
        }
        (SourceGuest::Stopped | SourceGuest::Postcopy, Some(Here)) => Action::Move,
        (SourceGuest::HandedOver | SourceGuest::Gone, Some(Here)) => Action::Moved,
        (SourceGuest::HandedOver, Some(NeverHere)) => Action::Dropped,
        (SourceGuest::Gone, Some(NeverHere)) => Action::Lost,
        (SourceGuest::Postcopy, Some(HereInPart)) => Action::Recover,
        (SourceGuest::Postcopy, Some(NeverHere)) => Action::Stranded,
        (SourceGuest::Gone, Some(HereInPart)) => Action::Torn,
        // It still writes what the destination has already, or its own word is on its way.
        (
            SourceGuest::Stopped | SourceGuest::Silent | SourceGuest::HandedOver,
            Some(HereInPart),
        )
        | (SourceGuest::Silent, Some(Here))
        | (_, Some(Unknown)) => Action::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use GuestVerdict::{Here, HereInPart, NeverHere, Unknown};

    const HOLDS: [Hold; 3] = [Hold::Session, Hold::Escrow, Hold::Nothing];
    const SOURCES: [SourceGuest; 6] = [
        SourceGuest::Running,
        SourceGuest::Stopped,
        SourceGuest::Postcopy,
        SourceGuest::HandedOver,
        SourceGuest::Gone,
        SourceGuest::Silent,
    ];
    const ANSWERS: [Option<GuestVerdict>; 5] = [
        None,
        Some(Here),
        Some(HereInPart),
        Some(NeverHere),
        Some(Unknown),
    ];

    #[test]
    fn the_table() {
        use SourceGuest::{Gone, HandedOver, Postcopy, Running, Silent, Stopped};
        let held = [
            (Running, None, Action::Stay),
            (Stopped, None, Action::Ask),
            (HandedOver, None, Action::Ask),
            (Gone, None, Action::Ask),
            (Silent, None, Action::Ask),
            (Running, Some(Here), Action::Conflict),
            (Stopped, Some(Here), Action::Move),
            (HandedOver, Some(Here), Action::Moved),
            (Gone, Some(Here), Action::Moved),
            (Silent, Some(Here), Action::Wait),
            (Running, Some(NeverHere), Action::Stay),
            (Stopped, Some(NeverHere), Action::Stay),
            (HandedOver, Some(NeverHere), Action::Dropped),
            (Gone, Some(NeverHere), Action::Lost),
            (Silent, Some(NeverHere), Action::Stay),
            (Running, Some(Unknown), Action::Wait),
            (Stopped, Some(Unknown), Action::Wait),
            (HandedOver, Some(Unknown), Action::Wait),
            (Gone, Some(Unknown), Action::Wait),
            (Silent, Some(Unknown), Action::Wait),
            (Postcopy, None, Action::Ask),
            (Postcopy, Some(Here), Action::Move),
            (Postcopy, Some(HereInPart), Action::Recover),
            (Postcopy, Some(NeverHere), Action::Stranded),
            (Postcopy, Some(Unknown), Action::Wait),
            (Running, Some(HereInPart), Action::Conflict),
            (Stopped, Some(HereInPart), Action::Wait),
            (HandedOver, Some(HereInPart), Action::Wait),
            (Gone, Some(HereInPart), Action::Torn),
            (Silent, Some(HereInPart), Action::Wait),
        ];
        for (source, answer, action) in held {
            for hold in [Hold::Session, Hold::Escrow] {
                for handed in [false, true] {
                    assert_eq!(
                        decide(hold, source, handed, answer),
                        action,
                        "{source:?} {answer:?}"
                    );
                }
            }
            let unheld = if (source, answer) == (Running, None) {
                Action::Ask
            } else {
                action
            };
            assert_eq!(
                decide(Hold::Nothing, source, true, answer),
                unheld,
                "{source:?} {answer:?}"
            );
        }
        assert_eq!(decide(Hold::Nothing, Running, false, None), Action::Stay);
    }

    /// Whatever is fed in: the source resumes only when the destination cannot run it.
    #[test]
    fn never_two_runnable_copies() {
        for hold in HOLDS {
            for source in SOURCES {
                for handed in [false, true] {
                    for answer in ANSWERS {
                        let action = decide(hold, source, handed, answer);
                        if action == Action::Stay && source != SourceGuest::Running {
                            assert_eq!(answer, Some(NeverHere));
                        }
                        if action == Action::Move {
                            assert_eq!(answer, Some(Here));
                        }
                        if matches!(answer, Some(Here | HereInPart)) {
                            assert_ne!(action, Action::Stay);
                        }
                        if answer == Some(HereInPart) {
                            assert!(
                                !matches!(action, Action::Move | Action::Moved),
                                "its memory is here"
                            );
                        }
                    }
                }
            }
        }
    }
}
