//! `dwcpctl nic` from its command line to the kernel: a real control plane on a host of its own, whose PCI
//! tree is made of files and whose interfaces are real. Root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
#[path = "../../../../nic-config/tests/fake/mod.rs"]
mod fake;
mod mistakes;

use bench::{NIC, bench, text};
use serde_json::Value;

const PROFILE: &str = "\
name = \"migration\"
[nic]
interface = \"mig0\"
[link]
mtu = 9000
[queues]
count = \"cores\"
cores = \"4-5\"
[hugepages]
size_kib = 2048
pages = 64
[cores]
isolated = \"6-7\"
";

#[test]
fn a_nic_is_found_planned_applied_verified_and_reverted() {
    let bench = bench();
    let profile = bench.profile("mig.toml", PROFILE);
    let (before, files) = (bench.state(), bench.machine.photograph());
    bench.beside_control_plane(|ctl| {
        let list = ctl(&["list"]);
        assert_eq!(list.code, 0, "{}", list.err);
        let rows: Vec<Vec<_>> = list.out.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.len(), 3, "{}", list.out);
        assert_eq!(rows[1][..3], ["0000:02:00.0", "mgmt0", "ice"]);
        assert!(list.out.lines().nth(1).unwrap().ends_with("needed by the host"), "{}", list.out);
        assert_eq!(rows[2], [NIC, "mig0", "ice", "1", "25000", "1500", "4", "0/4", "roce0", "free"]);

        let plan = ctl(&["plan", text(&profile)]);
        assert_eq!(plan.code, 0, "{}", plan.err);
        for line in [
            "  hugepages of 2048 KiB on node 1: 8 -> 64\n",
            "  mtu of mig0: 1500 -> 9000\n",
            "  isolated cores: none -> 6-7\n    needs reboot: add to the kernel's command line: isolcpus=",
        ] {
            assert!(plan.out.contains(line), "{}", plan.out);
        }
        let json: Value = serde_json::from_str(&ctl(&["plan", text(&profile), "--json"]).out).unwrap();
        let id = json["id"].as_str().unwrap().to_owned();
        assert!(plan.out.starts_with(&format!("plan {id} for NIC {NIC}\n")));
        assert_eq!(ctl(&["verify", text(&profile)]).code, 1, "not yet");
        assert_eq!((bench.state(), bench.machine.photograph()), (before, files.clone()));

        let other = ctl(&["apply", text(&profile), "--plan", "0123456789abcdef"]);
        assert_eq!(other.code, 1);
        assert!(other.err.contains(&id) && other.err.contains("next:"), "{}", other.err);
        assert_eq!(bench.state(), before);

        let applied = ctl(&["apply", text(&profile), "--plan", &id]);
        assert_eq!(applied.code, 0, "{}", applied.err);
        assert!(applied.out.ends_with("applied\n"), "{}", applied.out);
        assert_eq!(bench.state(), (9000, 2));
        let verified = ctl(&["verify", text(&profile)]);
        assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
        assert!(verified.out.contains("needs reboot") && verified.out.ends_with("\nas the profile wants it\n"));
        let list = ctl(&["list"]);
        assert!(list.out.contains(&format!("plan {id} applied")), "{}", list.out);
    });
    // What was done outlives the control plane, and so does the way back.
    bench.beside_control_plane(|ctl| {
        let changed = bench.profile("other.toml", &PROFILE.replace("9000", "8000"));
        let carried = ctl(&["apply", text(&changed)]);
        assert_eq!(carried.code, 1);
        assert!(carried.err.contains("nic revert"), "{}", carried.err);
        let reverted = ctl(&["revert", NIC]);
        assert_eq!(reverted.code, 0, "{}", reverted.err);
        assert!(
            reverted.out.contains("mtu of mig0: as it was\n")
                && reverted.out.ends_with("reverted\n"),
            "{}",
            reverted.out
        );
        assert_eq!(bench.state(), before);
        bench.machine.is_as(&files, "reverted");
        let nothing = ctl(&["revert", NIC]);
        assert_eq!(nothing.code, 1);
        assert!(nothing.err.contains("nothing to revert"), "{}", nothing.err);
    });
}

#[test]
fn refusals_say_where_why_and_what_to_do() {
    let bench = bench();
    let (before, files) = (bench.state(), bench.machine.photograph());
    bench.beside_control_plane(|ctl| {
        let replaced = |from: &str, to: &str| PROFILE.replace(from, to);
        for (profile, code, words) in [
            (
                replaced("\"mig0\"", "\"mgmt0\""),
                5,
                ["carries a default route, through mgmt0", "take another NIC"],
            ),
            (
                replaced("mtu", "mtuu"),
                2,
                ["profile line 5: unknown field `mtuu`", "correct that line"],
            ),
            (
                replaced("9000", "\"big\""),
                2,
                ["profile line 5", "expected u32"],
            ),
            (replaced("9000", "10"), 2, ["profile line 5", "68 to 65535"]),
            (
                replaced("\"mig0\"", "\"eth9\""),
                1,
                ["profile line 3", "no NIC eth9"],
            ),
            (
                replaced("\"4-5\"", "\"0-1\""),
                1,
                ["profile line 8: cores 0-1", "choose among 4-7"],
            ),
            (
                replaced("\"cores\"", "9"),
                1,
                ["profile line 7", "at most 4 queues"],
            ),
        ] {
            let path = bench.profile("bad.toml", &profile);
            for command in ["plan", "apply"] {
                let said = ctl(&[command, text(&path)]);
                assert_eq!(said.code, code, "{command}: {}", said.err);
                assert!(
                    said.out.is_empty() && said.err.contains("next:"),
                    "{}",
                    said.err
                );
                for word in words {
                    assert!(said.err.contains(word), "{command}: {}", said.err);
                }
            }
        }
        let missing = ctl(&["plan", "/nonexistent.toml"]);
        assert_eq!(missing.code, 2, "{}", missing.err);
        assert_eq!(ctl(&["revert", "eth0"]).code, 2, "that is no PCI address");
        assert_eq!(
            (bench.state(), bench.machine.photograph()),
            (before, files.clone())
        );
    });
}
