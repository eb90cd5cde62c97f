//! Plans carried out and taken back: to the end, through failures, and through a death of the process
//! before and after every single order to the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::panic::{AssertUnwindSafe, catch_unwind};

use dwcp_nic_config::apply::{ApplyError, apply};
use dwcp_nic_config::journal::{JournalError, Journals};
use dwcp_nic_config::pci::PciAddress;
use dwcp_nic_config::plan::{self, PlanError};
use dwcp_nic_config::profile::Profile;
use dwcp_nic_config::revert::{RevertError, revert};
use dwcp_nic_config::verify::verify;
use fake::{Died, Machine, Moment, NicSpec};

const NIC: &str = "0000:3b:00.0";

const KERNEL: &str = "\
name = \"kernel\"
[nic]
pci = \"0000:3b:00.0\"
[link]
mtu = 9000
up = true
[rings]
rx = 4096
tx = \"max\"
[queues]
count = 2
cores = \"5-6\"
[offloads]
rx-gro = false
rx-lro = true
[sriov]
vfs = 3
[hugepages]
size_kib = 2048
pages = 64
nodes = \"0-1\"
[cores]
isolated = \"5-6\"
";

const VFIO: &str = "\
[nic]
pci = \"0000:3b:00.0\"
[driver]
bind = \"vfio-pci\"
[hugepages]
size_kib = 2048
pages = 64
";

struct Bench {
    machine: Machine,
    journals: Journals,
    folder: tempfile::TempDir,
}

fn pci() -> PciAddress {
    NIC.parse().unwrap()
}

fn profile(text: &str) -> Profile {
    Profile::parse(text).unwrap()
}

/// A NIC that is not in its first state, since that is the one worth restoring.
fn bench() -> Bench {
    let machine = Machine::new();
    machine.plug(&NicSpec::new("0000:02:00.0", "igb", "eno1"));
    machine.address("eno1", "192.0.2.7", 24);
    machine.route(&["eno1"], true);
    machine.plug(&NicSpec {
        group: Some(7),
        node: 1,
        vfs_max: 8,
        ..NicSpec::new(NIC, "ice", "ens1f0")
    });
    for (name, value) in [
        ("mtu", "4000"),
        ("rings", "1024 256"),
        ("channels", "0 0 3"),
        (
            "offloads",
            "rx-gro off\nrx-lro off\ntx-checksum-sctp off fixed",
        ),
    ] {
        machine.set(&format!("sys/class/net/ens1f0/kernel/{name}"), value);
    }
    machine.set("proc/irq/5901/smp_affinity_list", "2-3");
    let folder = tempfile::tempdir().unwrap();
    let journals = Journals::open(&folder.path().join("nics")).unwrap();
    Bench {
        machine,
        journals,
        folder,
    }
}

impl Bench {
    fn apply(&self, text: &str) -> Result<plan::Plan, ApplyError> {
        apply(&self.machine, &self.journals, &profile(text), None)
    }

    fn carries(&self) -> bool {
        self.journals.read(&self.machine, pci()).unwrap().is_some()
    }

    fn journal(&self) -> std::path::PathBuf {
        self.folder
            .path()
            .join("nics")
            .join(format!("{NIC}.journal"))
    }
}

#[test]
fn a_profile_is_applied_verified_and_taken_back() {
    for text in [KERNEL, VFIO] {
        let bench = bench();
        let before = bench.machine.photograph();
        assert!(!verify(&bench.machine, &profile(text)).unwrap().holds);
        let plan = bench.apply(text).unwrap();
        assert!(!plan.changes.is_empty());
        let verified = verify(&bench.machine, &profile(text)).unwrap();
        assert!(verified.holds, "{}", verified.plan);
        assert_eq!(
            verified.plan.lines.len(),
            usize::from(text == KERNEL),
            "what takes a restart stays"
        );
        assert_ne!(bench.machine.photograph(), before);
        let reverted = revert(&bench.machine, &bench.journals, pci()).unwrap();
        assert_eq!(reverted.restored.len(), plan.changes.len());
        bench.machine.is_as(&before, "after");
        assert!(!bench.carries());
        let error = revert(&bench.machine, &bench.journals, pci()).unwrap_err();
        assert!(matches!(error, RevertError::Nothing(_)), "{error}");
    }
}

#[test]
fn the_kernel_was_told_what_the_profile_says() {
    let bench = bench();
    bench.apply(KERNEL).unwrap();
    let net = |name: &str| {
        bench
            .machine
            .read(&format!("sys/class/net/ens1f0/kernel/{name}"))
    };
    assert_eq!(
        (net("mtu").as_str(), net("rings").as_str()),
        ("9000", "4096 4096")
    );
    assert_eq!(net("channels"), "0 0 2");
    assert!(net("offloads").starts_with("rx-gro off\nrx-lro on"));
    assert_eq!(
        bench
            .machine
            .read(&format!("sys/bus/pci/devices/{NIC}/sriov_numvfs")),
        "3"
    );
    let cores: Vec<_> = (5900..5905)
        .map(|irq| {
            bench
                .machine
                .read(&format!("proc/irq/{irq}/smp_affinity_list"))
        })
        .collect();
    assert_eq!(
        cores,
        ["5", "6", "5", "6", "0-7"],
        "the last one serves no queue"
    );
    let pages = |node| {
        bench.machine.read(&format!(
            "sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"
        ))
    };
    assert_eq!((pages(0).as_str(), pages(1).as_str()), ("64", "64"));

    let other = self::bench();
    other.apply(VFIO).unwrap();
    let device = other.machine.path().join("sys/bus/pci/devices").join(NIC);
    assert!(
        std::fs::read_link(device.join("driver"))
            .unwrap()
            .ends_with("vfio-pci")
    );
    assert!(!device.join("net").exists());
}

/// Dies at an order of `work`; `false` if `work` gave fewer orders and lived.
fn dies(machine: &Machine, order: usize, moment: Moment, work: impl FnOnce()) -> bool {
    machine.dies_at(order, moment);
    let result = catch_unwind(AssertUnwindSafe(work));
    machine.lives();
    match result {
        Ok(()) => false,
        Err(payload) if payload.is::<Died>() => true,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

#[test]
fn a_death_at_any_order_of_an_apply_can_be_taken_back() {
    for text in [KERNEL, VFIO] {
        let mut deaths = 0;
        'orders: for order in 1.. {
            for moment in [Moment::Before, Moment::After] {
                let bench = bench();
                let before = bench.machine.photograph();
                let died = dies(&bench.machine, order, moment, || {
                    bench.apply(text).unwrap();
                });
                if !died {
                    break 'orders;
                }
                deaths += 1;
                assert!(bench.carries());
                // Only the way back is open.
                if let Err(error) = bench.apply(text) {
                    let cut = matches!(&error, ApplyError::Carries { state, .. } if state.contains("cut off"));
                    let gone = matches!(&error, ApplyError::Plan(PlanError::Refused(_)));
                    assert!(cut || gone, "{error}");
                } else {
                    assert!(verify(&bench.machine, &profile(text)).unwrap().holds);
                }
                revert(&bench.machine, &bench.journals, pci()).unwrap();
                bench
                    .machine
                    .is_as(&before, &format!("order {order} {moment:?}"));
                assert!(!bench.carries());
            }
        }
        assert!(deaths >= 8, "only {deaths} deaths");
    }
}

#[test]
fn a_death_at_any_order_of_a_revert_can_be_taken_back() {
    for text in [KERNEL, VFIO] {
        let mut deaths = 0;
        'orders: for order in 1.. {
            for moment in [Moment::Before, Moment::After] {
                let bench = bench();
                let before = bench.machine.photograph();
                bench.apply(text).unwrap();
                let died = dies(&bench.machine, order, moment, || {
                    revert(&bench.machine, &bench.journals, pci()).unwrap();
                });
                if !died {
                    break 'orders;
                }
                deaths += 1;
                revert(&bench.machine, &bench.journals, pci()).unwrap();
                bench
                    .machine
                    .is_as(&before, &format!("order {order} {moment:?}"));
            }
        }
        assert!(deaths >= 8, "only {deaths} deaths");
    }
}

#[test]
fn a_change_that_fails_takes_all_back() {
    for (order, word) in [
        ("set rings", "rings of ens1f0"),
        ("set channels", "queues of ens1f0"),
        ("set offloads", "offloads of ens1f0"),
        ("sriov_numvfs", "virtual functions"),
        ("irq/5902", "interrupts"),
    ] {
        let bench = bench();
        let before = bench.machine.photograph();
        bench.machine.refuses(Some(order));
        let error = bench.apply(KERNEL).unwrap_err();
        let ApplyError::Failed { setting, left, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(setting, word);
        assert!(left.is_empty(), "{error}");
        assert!(
            error.to_string().contains("everything is as it was"),
            "{error}"
        );
        bench.machine.is_as(&before, order);
        assert!(!bench.carries());
    }
}

#[test]
fn a_kernel_that_does_less_than_it_was_told_is_noticed() {
    let bench = bench();
    let before = bench.machine.photograph();
    bench.machine.has_pages_for(40);
    let error = bench.apply(KERNEL).unwrap_err().to_string();
    assert!(
        error.contains("64 was asked for")
            && error.contains("made it 40")
            && error.contains("at boot"),
        "{error}"
    );
    bench.machine.is_as(&before, "after");

    let bench = self::bench();
    let before = bench.machine.photograph();
    bench.machine.rounds_rings(256);
    let odd = KERNEL.replace("rx = 4096", "rx = 4000");
    let error = bench.apply(&odd).unwrap_err().to_string();
    assert!(error.contains("rx 3840"), "{error}");
    bench.machine.is_as(&before, "after");
}

#[test]
fn what_cannot_be_taken_back_is_named_and_can_be_later() {
    let bench = bench();
    let before = bench.machine.photograph();
    bench.apply(KERNEL).unwrap();
    bench.machine.refuses(Some("set rings"));
    let error = revert(&bench.machine, &bench.journals, pci()).unwrap_err();
    // Virtual functions leave the rings to be set too: some drivers reset them with their number.
    assert!(
        matches!(&error, RevertError::Partly { left, .. } if left[0].setting == "rings of ens1f0"
            && left.iter().all(|left| left.reason.contains("set rings"))),
        "{error}"
    );
    assert!(bench.carries());
    bench.machine.refuses(None);
    revert(&bench.machine, &bench.journals, pci()).unwrap();
    bench.machine.is_as(&before, "after");
}

#[test]
fn a_nic_carries_one_plan_at_a_time() {
    let bench = bench();
    bench.apply(KERNEL).unwrap();
    let again = bench.apply(KERNEL).unwrap();
    assert!(again.changes.is_empty(), "the same once more is nothing");
    let error = bench
        .apply(&KERNEL.replace("mtu = 9000", "mtu = 8000"))
        .unwrap_err();
    assert!(
        matches!(&error, ApplyError::Carries { state, .. } if state.contains("applied")),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains(&format!("dwcpctl nic revert {NIC}"))
    );
}

#[test]
fn only_the_plan_that_was_looked_at_is_applied() {
    let bench = bench();
    let wanted = profile(KERNEL);
    let id = plan::plan(&bench.machine, &wanted).unwrap().view().id;
    bench.machine.set("sys/class/net/ens1f0/kernel/mtu", "2000");
    let before = bench.machine.photograph();
    let error = apply(&bench.machine, &bench.journals, &wanted, Some(&id)).unwrap_err();
    assert!(matches!(error, ApplyError::Another { .. }), "{error}");
    bench.machine.is_as(&before, "after");
    let id = plan::plan(&bench.machine, &wanted).unwrap().view().id;
    apply(&bench.machine, &bench.journals, &wanted, Some(&id)).unwrap();
}

#[test]
fn a_restart_of_the_machine_takes_everything_back() {
    let bench = bench();
    bench.apply(KERNEL).unwrap();
    bench
        .machine
        .set("proc/sys/kernel/random/boot_id", "boot-2");
    let before = bench.machine.photograph();
    let reverted = revert(&bench.machine, &bench.journals, pci()).unwrap();
    assert!(reverted.by_restart && reverted.restored.is_empty());
    bench.machine.is_as(&before, "after");

    // And a new plan does not wait for that.
    let bench = self::bench();
    bench.apply(VFIO).unwrap();
    let bench = Bench {
        machine: self::bench().machine,
        ..bench
    };
    bench
        .machine
        .set("proc/sys/kernel/random/boot_id", "boot-2");
    let before = bench.machine.photograph();
    bench.apply(KERNEL).unwrap();
    revert(&bench.machine, &bench.journals, pci()).unwrap();
    bench.machine.is_as(&before, "after");
}

#[test]
fn a_nic_that_the_host_came_to_need_is_not_reverted() {
    let bench = bench();
    bench.apply(KERNEL).unwrap();
    bench.machine.route(&["ens1f0"], true);
    let error = revert(&bench.machine, &bench.journals, pci()).unwrap_err();
    assert!(
        matches!(error, RevertError::Guarded(_)) && error.to_string().contains("default route"),
        "{error}"
    );
    assert!(bench.carries());
}

#[test]
fn a_journal_survives_what_a_crash_leaves_of_it_and_nothing_else() {
    let bench = bench();
    let before = bench.machine.photograph();
    bench.apply(KERNEL).unwrap();
    let whole = std::fs::read_to_string(bench.journal()).unwrap();
    assert!(whole.lines().count() > 9 && whole.contains("\"complete\""));
    // The last line is cut: that is an apply that did not end.
    std::fs::write(bench.journal(), &whole[..whole.len() - 5]).unwrap();
    let record = bench.journals.read(&bench.machine, pci()).unwrap().unwrap();
    assert!(!record.complete && record.changes.len() == whole.lines().count() - 2);
    // A line in the middle is damaged: nobody knows what was there.
    std::fs::write(bench.journal(), whole.replacen("\"mtu\"", "\"mtx\"", 1)).unwrap();
    let error = revert(&bench.machine, &bench.journals, pci()).unwrap_err();
    assert!(
        matches!(&error, RevertError::Journal(JournalError::Damaged { line, .. }) if *line > 1),
        "{error}"
    );
    std::fs::write(bench.journal(), &whole).unwrap();
    revert(&bench.machine, &bench.journals, pci()).unwrap();
    bench.machine.is_as(&before, "after");
    // The very first line is cut: nothing was begun, so nothing is in the way.
    std::fs::write(bench.journal(), &whole[..20]).unwrap();
    assert!(!bench.carries());
    bench.apply(VFIO).unwrap();
}

#[test]
fn one_process_at_a_time() {
    let bench = bench();
    let lock = bench.journals.lock().unwrap();
    let before = bench.machine.photograph();
    let error = bench.apply(KERNEL).unwrap_err();
    assert!(
        matches!(error, ApplyError::Journal(JournalError::Busy(_))),
        "{error}"
    );
    assert!(matches!(
        revert(&bench.machine, &bench.journals, pci()),
        Err(RevertError::Journal(JournalError::Busy(_)))
    ));
    bench.machine.is_as(&before, "after");
    drop(lock);
    bench.apply(KERNEL).unwrap();
}
