//! The side-by-side harness, as a user runs it: real guests of the lab over a real line, by the product and
//! by the hypervisor alone, and every report that it writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use dwcp_lab::stack::binary;
use dwcp_lab::watchdog::Watchdog;
use serde_json::Value;

fn compare(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(binary("dwcp-perf").unwrap());
    command.arg("compare").args(arguments);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), said)
}

#[test]
fn a_guest_is_moved_both_ways_and_every_report_holds_the_figures() {
    let _watchdog = Watchdog::new("a comparison", Duration::from_secs(300));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (json, html, markdown) = (file("json"), file("html"), file("markdown"));
    let (done, said) = compare(&[
        "--guest",
        "load",
        "--link",
        "fast900",
        "--configs",
        "dwcp,plain",
        "--runs",
        "1",
        "--json",
        &json,
        "--html",
        &html,
        "--markdown",
        &markdown,
    ]);
    assert!(done, "{said}");
    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(
        (&report["guest"], &report["link"]),
        (&"load".into(), &"fast900".into())
    );
    let [dwcp, plain] = &report["configs"].as_array().unwrap()[..] else {
        panic!("{report}");
    };
    for config in [dwcp, plain] {
        for figure in [
            "total_ms",
            "downtime_ms",
            "gap_ms",
            "wire_bytes",
            "cpu_s",
            "link_used",
        ] {
            let figure = &config[figure];
            assert_eq!(figure["n"], 1, "{report}");
            assert!(figure["median"].as_f64().unwrap() > 0.0, "{report}");
            assert_eq!(figure["median"], figure["max"]);
        }
        // A line carries no more than its rate.
        assert!(
            config["link_used"]["max"].as_f64().unwrap() <= 1.01,
            "{report}"
        );
        assert_eq!(config["failed"].as_array().unwrap().len(), 0);
    }
    let median = |config: &Value, figure: &str| config[figure]["median"].as_f64().unwrap();
    assert!(median(dwcp, "planes_cpu_s") > 0.0 && median(plain, "planes_cpu_s") == 0.0);
    for (ratio, figure) in [
        ("total", "total_ms"),
        ("wire", "wire_bytes"),
        ("gap", "gap_ms"),
    ] {
        let expected = median(dwcp, figure) / median(plain, figure);
        let ratio = report["ratio"][ratio].as_f64().unwrap();
        assert!((ratio - expected).abs() < 1e-9, "{report}");
    }
    // 384 MiB of load, of which the hypervisor alone sends every byte.
    assert!(median(plain, "wire_bytes") > 384e6, "{report}");
    let page = fs::read_to_string(html).unwrap();
    assert_eq!(page.matches("<svg").count(), 7);
    assert!(
        fs::read_to_string(markdown)
            .unwrap()
            .contains("| dwcp | 1 | 0 |")
    );
}

#[test]
fn what_it_does_not_know_is_refused_with_what_it_knows() {
    let (done, said) = compare(&["--guest", "windows", "--link", "lan"]);
    assert!(
        !done && said.contains("windows") && said.contains("postgres"),
        "{said}"
    );
    let (done, said) = compare(&["--guest", "load", "--link", "dsl"]);
    assert!(
        !done && said.contains("dsl") && said.contains("wan200"),
        "{said}"
    );
    let (done, said) = compare(&["--guest", "load", "--link", "lan", "--runs", "0"]);
    assert!(!done && said.contains("1..=1000"), "{said}");
}
