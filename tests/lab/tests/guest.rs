//! Guests migrate, tick and find every byte of their memory, or say that they do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use dwcp_lab::direct::{DirectConfig, run};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig};
use dwcp_lab::link::{LinkConfig, Shape};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::watchdog::Watchdog;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

fn small() -> GuestConfig {
    GuestConfig {
        memory_mb: 160,
        load_mb: 48,
        ..GuestConfig::default()
    }
}

fn config() -> DirectConfig {
    DirectConfig {
        guest: small(),
        destination: QemuVersion::V10,
        link: LinkConfig::symmetric(Shape::new(400.0, 5.0, 0.0)),
        dirty_pages_per_s: 200,
        multifd: None,
        downtime_limit_ms: 300,
        arrival: Arrival::Run,
        limit: LIMIT,
    }
}

#[test]
fn a_guest_sees_damage_to_its_own_memory() {
    let _dog = Watchdog::new("damage", LIMIT);
    let guest = Guest::saved(None, small()).unwrap();
    guest.set_rate(500).unwrap();
    let right = guest.verify().unwrap();
    assert!(right.ok, "{right:?}");
    guest.set_rate(0).unwrap();
    guest.flip(11).unwrap();
    let wrong = guest.verify().unwrap();
    assert!(
        !wrong.ok && wrong.line.contains("bad=1 first=11"),
        "{wrong:?}"
    );
}

#[test]
fn a_guest_migrates_directly_and_is_whole() {
    let _dog = Watchdog::new("direct", LIMIT);
    let (figures, _) = run(&config()).unwrap();
    println!("{figures:?}");
    assert_eq!(figures.status, "completed");
    assert!(figures.guest_memory_ok);
    assert_eq!(figures.doubled_ticks, 0);
    assert!(figures.missing_ticks <= 1, "{figures:?}");
    assert!(
        figures.wire_bytes > figures.hypervisor_bytes,
        "headers are counted: {figures:?}"
    );
    assert!(
        figures.guest_gap_ms >= 10.0,
        "a gap below a tick is no measurement: {figures:?}"
    );
}

#[test]
fn a_saved_guest_of_qemu_7_2_runs_on() {
    let _dog = Watchdog::new("7.2", LIMIT);
    let config = GuestConfig {
        qemu: QemuVersion::V7_2,
        ..small()
    };
    let guest = Guest::saved(None, config).unwrap();
    guest.set_rate(500).unwrap();
    for _ in 0..5 {
        let verdict = guest.verify().unwrap();
        assert!(verdict.ok, "{verdict:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn both_memories_are_equal_over_multifd() {
    let _dog = Watchdog::new("multifd", LIMIT);
    let config = DirectConfig {
        multifd: Some(2),
        arrival: Arrival::Pause,
        ..config()
    };
    let (figures, _) = run(&config).unwrap();
    assert_eq!(
        (figures.status.as_str(), figures.identical),
        ("completed", Some(true))
    );
    assert!(figures.guest_memory_ok);
}

#[test]
fn a_guest_of_qemu_10_0_moves_to_7_2() {
    let _dog = Watchdog::new("10.0 to 7.2", LIMIT);
    let destination = QemuVersion::V7_2;
    let (figures, _) = run(&DirectConfig {
        destination,
        ..config()
    })
    .unwrap();
    assert_eq!(figures.status, "completed");
    assert!(
        figures.guest_memory_ok && figures.doubled_ticks == 0,
        "{figures:?}"
    );
}

#[test]
fn a_migration_past_its_limit_leaves_the_guest_at_the_source() {
    let _dog = Watchdog::new("limit", LIMIT);
    let config = DirectConfig {
        link: LinkConfig::symmetric(Shape::new(5.0, 5.0, 0.0)),
        limit: Duration::from_secs(2),
        ..config()
    };
    let (figures, _) = run(&config).unwrap();
    assert_eq!(figures.status, "cancelled");
    assert!(
        figures.guest_memory_ok,
        "the guest must go on at the source"
    );
    assert_eq!(figures.doubled_ticks, 0);
}
