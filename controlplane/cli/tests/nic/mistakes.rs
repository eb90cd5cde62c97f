//! Mistakes in a NIC's profile, from the file to what `dwcpctl nic plan` says of them: the line, the reason, and
//! what to do.

use crate::bench::{bench, text};

/// Exit status for a profile that no machine could take.
const NO_PROFILE: i32 = 2;
/// Exit status for a profile that this machine cannot take.
const NOT_HERE: i32 = 1;

/// Each is a whole profile, the line that is wrong, and what is said of it.
const NO_PROFILES: &[(&str, usize, &str)] = &[
    // No TOML at all.
    ("[nic", 1, ""),
    ("[nic]\ninterface = mig0\n", 2, ""),
    ("[nic]\ninterface = \"mig0\"\n[link]\nmtu = \n", 4, ""),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nmtu = 9000 up = true\n",
        4,
        "",
    ),
    (
        "[nic]\ninterface = \"mig0\"\nname = \"late\"\n",
        3,
        "unknown field `name`",
    ),
    ("[nic]\ninterface = \"mig0\"\n[nic]\n", 3, "duplicate"),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nup = true\nup = false\n",
        5,
        "duplicate",
    ),
    ("\n\n[[nic]]\ninterface = \"mig0\"\n", 3, "expected a table"),
    // Keys and tables that do not exist, or are not there.
    ("", 1, "missing field `nic`"),
    (
        "name = \"x\"\n[link]\nup = true\n",
        1,
        "missing field `nic`",
    ),
    ("[nic]\n", 1, "exactly one of `pci` and `interface`"),
    (
        "[nic]\ninterface = \"mig0\"\npci = \"0000:3b:00.0\"\n",
        1,
        "exactly one",
    ),
    (
        "nick = \"x\"\n[nic]\ninterface = \"mig0\"\n",
        1,
        "unknown field `nick`",
    ),
    (
        "[nic]\nintreface = \"mig0\"\n",
        2,
        "unknown field `intreface`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[driver]\nbnid = \"kernel\"\n",
        4,
        "unknown field `bnid`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nmtuu = 9000\n",
        4,
        "unknown field `mtuu`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[rings]\nrxx = 1\n",
        4,
        "unknown field `rxx`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[queues]\ncoutn = 1\n",
        4,
        "unknown field `coutn`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[sriov]\nvf = 1\n",
        4,
        "unknown field `vf`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[cores]\nisolate = \"1\"\n",
        4,
        "unknown field `isolate`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[hugepages]\nsize_kib = 2048\npages = 1\nnode = \"0\"\n",
        6,
        "unknown field `node`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[hugepages]\npages = 1\n",
        3,
        "missing field `size_kib`",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[hugepages]\nsize_kib = 2048\n",
        3,
        "missing field `pages`",
    ),
    // Values of another kind.
    (
        "name = 7\n[nic]\ninterface = \"mig0\"\n",
        1,
        "expected a string",
    ),
    ("nic = \"mig0\"\n", 1, "expected a table"),
    (
        "link = [9000, true]\n[nic]\ninterface = \"mig0\"\n",
        1,
        "expected a table",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[[rings]]\nrx = 64\n",
        3,
        "expected a table",
    ),
    (
        "offloads = \"off\"\n[nic]\ninterface = \"mig0\"\n",
        1,
        "expected a map",
    ),
    ("[nic]\npci = 3\n", 2, "expected a string"),
    ("[nic]\ninterface = [\"mig0\"]\n", 2, "expected a string"),
    (
        "[nic]\ninterface = \"mig0\"\n[driver]\nbind = true\n",
        4,
        "expected a string",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nmtu = \"9000\"\n",
        4,
        "expected u32",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nmtu = 9000.0\n",
        4,
        "expected u32",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nup = 1\n",
        4,
        "expected a boolean",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[rings]\nrx = true\n",
        4,
        "a whole number or a word",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[rings]\ntx = 1.5\n",
        4,
        "a whole number or a word",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[queues]\ncount = []\n",
        4,
        "a whole number or a word",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[queues]\ncores = 3\n",
        4,
        "expected a string",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[offloads]\nrx-gro = \"on\"\n",
        4,
        "expected a boolean",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[sriov]\nvfs = \"2\"\n",
        4,
        "expected u32",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[hugepages]\nsize_kib = \"2M\"\npages = 1\n",
        4,
        "expected u32",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[cores]\nisolated = [2]\n",
        4,
        "expected a string",
    ),
    // Values that no NIC could take.
    ("[nic]\npci = \"3b:00.0\"\n", 2, "pci = "),
    ("[nic]\npci = \"0000:3b:00.8\"\n", 2, "pci = "),
    ("[nic]\ninterface = \"\"\n", 2, "no name of an interface"),
    (
        "[nic]\ninterface = \"../mig0\"\n",
        2,
        "no name of an interface",
    ),
    (
        "[nic]\ninterface = \"sixteen-letters-\"\n",
        2,
        "no name of an interface",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[driver]\nbind = \"igb_uio\"\n",
        4,
        "neither \"kernel\" nor \"vfio-pci\"",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nmtu = 67\n",
        4,
        "outside 68 to 65535",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nmtu = 65536\n",
        4,
        "outside 68 to 65535",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nmtu = -1\n",
        4,
        "expected u32",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[link]\nmtu = 99999999999\n",
        4,
        "expected u32",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[rings]\nrx = 0\n",
        4,
        "outside 1 to 65536",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[rings]\ntx = -2\n",
        4,
        "out of range",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[rings]\ntx = \"all\"\n",
        4,
        "neither a number nor \"max\"",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[queues]\ncount = 0\n",
        4,
        "outside 1 to 4096",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[queues]\ncount = \"max\"\n",
        4,
        "nor \"cores\"",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[queues]\ncores = \"9-2\"\n",
        4,
        "no list of numbers",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[queues]\ncores = \"\"\n",
        4,
        "names none",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[sriov]\nvfs = 70000\n",
        4,
        "outside 0 to 65535",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[hugepages]\nsize_kib = 3000\npages = 1\n",
        4,
        "no page size",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[hugepages]\nsize_kib = 2048\npages = 0\n",
        5,
        "outside 1 to",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[hugepages]\nsize_kib = 2048\npages = 1\nnodes = \"near\"\n",
        6,
        "no list of numbers",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[cores]\nisolated = \"all\"\n",
        4,
        "no list of numbers",
    ),
    // Keys that contradict each other.
    (
        "[nic]\ninterface = \"mig0\"\n[queues]\ncount = \"cores\"\n",
        4,
        "needs `cores` beside it",
    ),
    (
        "[nic]\ninterface = \"mig0\"\n[driver]\nbind = \"vfio-pci\"\n",
        2,
        "name it by `pci`",
    ),
    (
        "[nic]\npci = \"0000:3b:00.0\"\n[driver]\nbind = \"vfio-pci\"\n[link]\nmtu = 9000\n",
        6,
        "remove mtu",
    ),
    (
        "[nic]\npci = \"0000:3b:00.0\"\n[driver]\nbind = \"vfio-pci\"\n[rings]\nrx = \"max\"\n",
        6,
        "remove rings.rx",
    ),
    (
        "[nic]\npci = \"0000:3b:00.0\"\n[driver]\nbind = \"vfio-pci\"\n[sriov]\nvfs = 1\n",
        6,
        "remove sriov.vfs",
    ),
];

/// Each is what follows a profile's first two lines, which name the NIC, then as above.
const NOT_HERES: &[(&str, usize, &str)] = &[
    (
        "[link]\nmtu = 65000\n[rings]\nrx = 64\n",
        6,
        "has no ring sizes to set",
    ),
    ("[queues]\ncount = 9\n", 4, "at most 4 queues"),
    (
        "[queues]\ncores = \"0-1\"\n",
        4,
        "cores 0-1 are not among those of node 1",
    ),
    (
        "[link]\nup = false\n[queues]\ncores = \"4\"\n",
        6,
        "no queue interrupts while its interface is off",
    ),
    ("[offloads]\nrx-warp = true\n", 4, "no offload \"rx-warp\""),
    ("[offloads]\nrx-fcs = true\n", 4, "does not switch rx-fcs"),
    ("[sriov]\nvfs = 5\n", 4, "at most 4 virtual functions"),
    (
        "[hugepages]\nsize_kib = 64\npages = 1\n",
        4,
        "no hugepages of 64 KiB",
    ),
    (
        "[hugepages]\nsize_kib = 2048\npages = 1\nnodes = \"7\"\n",
        6,
        "no node 7",
    ),
    ("[cores]\nisolated = \"4,99\"\n", 4, "has no cores 99"),
];

#[test]
fn every_kind_of_mistake_is_said_with_its_line_and_reason() {
    let bench = bench();
    let (before, files) = (bench.state(), bench.machine.photograph());
    bench.beside_control_plane(|ctl| {
        let refused = |profile: &str, code: i32, line: usize, reason: &str| {
            let path = bench.profile("bad.toml", profile);
            let said = ctl(&["plan", text(&path)]);
            let told = format!("{profile}\n{}{}", said.out, said.err);
            assert_eq!(said.code, code, "{told}");
            assert!(said.out.is_empty(), "{told}");
            let place = format!("profile line {line}: ");
            let (_, rest) = said
                .err
                .split_once(&place)
                .unwrap_or_else(|| panic!("{told}"));
            assert!(rest.lines().next().unwrap().contains(reason), "{told}");
            assert!(rest.contains("next: "), "{told}");
        };
        for (profile, line, reason) in NO_PROFILES {
            refused(profile, NO_PROFILE, *line, reason);
        }
        let long = "#".repeat(40_000);
        refused(&long, NO_PROFILE, 1, "longer than");
        let nic = "[nic]\ninterface = \"mig0\"\n";
        for (rest, line, reason) in NOT_HERES {
            refused(&format!("{nic}{rest}"), NOT_HERE, *line, reason);
        }
        refused(
            "\n[nic]\ninterface = \"eth9\"\n",
            NOT_HERE,
            3,
            "no NIC eth9",
        );
    });
    assert_eq!((bench.state(), bench.machine.photograph()), (before, files));
}

#[test]
fn all_that_this_machine_cannot_do_is_said_at_once() {
    let bench = bench();
    bench.beside_control_plane(|ctl| {
        let profile = "[nic]\ninterface = \"mig0\"\n[queues]\ncount = 9\n[sriov]\nvfs = 5\n[cores]\nisolated = \"99\"\n";
        let said = ctl(&["plan", text(&bench.profile("bad.toml", profile))]);
        for line in [4, 6, 8] {
            assert!(said.err.contains(&format!("profile line {line}: ")), "{}", said.err);
        }
    });
}
