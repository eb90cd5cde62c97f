//! Any text as a NIC's profile: a profile whose every value is in its range, or an error that names a line of
//! the text and a reason.
#![no_main]

use dwcp_nic_config::profile::{Bind, NicName, PROFILE_BYTES_MAX, Profile, Queues, Ring};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let lines = 1 + text.bytes().filter(|byte| *byte == b'\n').count();
    let profile = match Profile::parse(text) {
        Ok(profile) => profile,
        Err(error) => {
            assert!((1..=lines).contains(&error.line), "{error}");
            assert!(!error.problem.is_empty());
            return;
        }
    };
    assert!(text.len() <= PROFILE_BYTES_MAX);
    if let NicName::Interface(name) = &profile.nic.value {
        assert!((1..=15).contains(&name.len()) && !name.contains('/'));
    }
    let mtu = profile.mtu.as_ref().map(|mtu| (mtu.value, mtu.line));
    let vfs = profile.vfs.as_ref().map(|vfs| (vfs.value, vfs.line));
    let rings = [&profile.rx_ring, &profile.tx_ring].map(|ring| match ring {
        Some(ring) => match ring.value {
            Ring::Descriptors(count) => Some((count, ring.line)),
            Ring::Max => None,
        },
        None => None,
    });
    let count = profile
        .queues
        .as_ref()
        .and_then(|queues| match queues.value {
            Queues::Count(count) => Some((count, queues.line)),
            Queues::Cores => None,
        });
    assert!(mtu.is_none_or(|(mtu, _)| (68..=65_535).contains(&mtu)));
    assert!(vfs.is_none_or(|(vfs, _)| vfs <= 65_535));
    for (value, line) in [mtu, vfs, rings[0], rings[1], count].into_iter().flatten() {
        assert!((1..=lines).contains(&line), "{value} is in no line");
        assert!(value <= 1 << 16);
    }
    if profile.bind.as_ref().map(|bind| bind.value) == Some(Bind::VfioPci) {
        assert!(matches!(profile.nic.value, NicName::Pci(_)));
        assert!(profile.offloads.is_empty() && mtu.is_none() && vfs.is_none());
    }
});
