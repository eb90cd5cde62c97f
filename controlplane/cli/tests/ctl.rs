//! The program itself, against a real control plane without a data plane, and against a stand-in API
//! that plays migrations of every outcome.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;
mod stand_in;

use std::time::Duration;

use kit::{TOKEN, ctl, node, run, said, watchdog};
use serde_json::Value;
use stand_in::{ID, StandIn};

const MIGRATE: [&str; 7] = [
    "migrate",
    "--vm",
    "/run/a.qmp",
    "--to",
    "http://b:1",
    "--to-qmp",
    "/run/b.qmp",
];

fn migrate(more: &[&'static str]) -> Vec<&'static str> {
    MIGRATE
        .iter()
        .copied()
        .chain(more.iter().copied())
        .collect()
}

#[tokio::test]
async fn modes_are_shown_set_and_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let api = node.api.as_str();
    let none = run(api, &["mode"]).await;
    assert_eq!(
        (none.code, none.out.contains("no peer")),
        (0, true),
        "{}",
        none.err
    );
    let set = run(api, &["mode", "set", "internet", "--peer", "10.0.0.2"]).await;
    assert_eq!(set.code, 0, "{}", set.err);
    assert!(
        set.out.contains("10.0.0.2  internet") && set.out.contains("alice"),
        "{}",
        set.out
    );
    let all = run(api, &["--json", "mode", "set", "hybrid"]).await;
    let all: Value = serde_json::from_str(&all.out).unwrap();
    assert_eq!(
        (&all["override"]["mode"], &all["peers"][0]["mode"]),
        (&"hybrid".into(), &"internet".into())
    );
    let auto = run(api, &["--json", "mode", "auto", "--peer", "10.0.0.2"]).await;
    let auto: Value = serde_json::from_str(&auto.out).unwrap();
    assert_eq!(
        (&auto["mode"], &auto["by"]),
        (&"hybrid".into(), &"override_of_all".into())
    );
    let shown = run(api, &["mode", "show"]).await;
    assert!(shown.out.contains("all peers: hybrid"), "{}", shown.out);
    let one = run(api, &["--json", "mode", "show", "10.0.0.9"]).await;
    assert_ne!(one.code, 0);
    assert!(one.err.contains("nothing is known"), "{}", one.err);
    assert_eq!(run(api, &["mode", "set", "lan"]).await.code, 2);
    assert_eq!(run(api, &["mode", "auto"]).await.code, 0);
    node.stop.send_replace(true);
    watchdog(node.task).await.unwrap();
}

#[tokio::test]
async fn flags_rollback_and_health_against_a_real_control_plane() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let api = node.api.as_str();

    let list = run(api, &["flags"]).await;
    assert_eq!(list.code, 0, "{}", list.err);
    assert!(
        list.out.contains("dwcp_v3_hde") && list.out.contains("not yet"),
        "{}",
        list.out
    );

    let set = [
        "--json",
        "flags",
        "set",
        "dwcp_v3_hde",
        "--percentage",
        "12.5",
        "--enabled",
        "true",
    ];
    let set = run(api, &set).await;
    let flag: Value = serde_json::from_str(&set.out).unwrap();
    assert_eq!((set.code, &flag["percentage"]), (0, &Value::from(12.5)));

    let excluded = run(
        api,
        &["flags", "exclude", "dwcp_v3_amst", "node-7", "node-8"],
    )
    .await;
    assert!(
        excluded.code == 0 && excluded.out.contains("node-7 node-8"),
        "{}",
        excluded.out
    );
    let undone = run(
        api,
        &["flags", "exclude", "dwcp_v3_amst", "node-7", "--undo"],
    )
    .await;
    assert!(!undone.out.contains("node-7") && undone.out.contains("node-8"));

    // No data plane is attached: the switch is kept, and that is said, not more.
    let thrown = run(api, &["rollback"]).await;
    assert_eq!(
        (thrown.code, thrown.out.as_str()),
        (0, "kill switch on\n"),
        "{}",
        thrown.err
    );
    assert!(thrown.err.contains("no data plane"), "{}", thrown.err);
    assert!(
        run(api, &["flags", "list"])
            .await
            .out
            .contains("kill switch: ON")
    );
    let released = run(api, &["--json", "rollback", "--off"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&released.out).unwrap()["force_v1"],
        false
    );
    let history = run(api, &["flags", "history"]).await;
    assert_eq!(history.out.lines().count(), 5);
    assert!(history.out.contains("127.0.0.1 (alice)"), "{}", history.out);

    let health = run(api, &["health"]).await;
    assert_eq!(health.code, 1);
    assert!(health.out.starts_with("unavailable\n") && health.out.contains("no data plane"));
    let detailed = run(api, &["health", "--detailed"]).await;
    assert!(detailed.out.contains("data_plane: {"));
    assert!(run(api, &["status"]).await.out.contains("no migrations"));

    // Refusals: what, why and what to type next.
    for (args, code, words) in [
        (
            vec!["flags", "set", "dwcp_v3_zzz", "--enabled", "true"],
            1,
            ["dwcp_v3_zzz", "flags list"],
        ),
        (
            vec!["flags", "set", "dwcp_v3_hde", "--percentage", "101"],
            2,
            ["percentage", "next:"],
        ),
        (vec!["status", "zz"], 2, ["32 hexadecimal", "next:"]),
        (vec!["status", ID], 1, [ID, "next:"]),
        (vec!["status", ID, "--watch"], 1, [ID, "next:"]),
        (vec!["cancel", ID], 1, [ID, "next:"]),
    ] {
        let refused = run(api, &args).await;
        assert_eq!(refused.code, code, "{args:?}: {}", refused.err);
        assert!(refused.out.is_empty(), "{args:?}");
        for word in words {
            assert!(refused.err.contains(word), "{args:?}: {}", refused.err);
        }
    }
    // A QMP socket outside the allowed folders is refused by policy.
    let refused = run(api, &migrate(&[])).await;
    assert_eq!(refused.code, 5, "{}", refused.err);
    assert!(refused.err.contains("next:"));

    node.stop.send_replace(true);
    watchdog(node.task).await.unwrap();
}

#[tokio::test]
async fn the_token_comes_from_a_file_or_the_environment_and_must_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let file = folder.path().join("token").display().to_string();
    let wrong = folder.path().join("wrong").display().to_string();
    std::fs::write(&wrong, "fedcba9876543210-token").unwrap();
    for (env, args, code) in [
        (None, vec!["--token-file", &file, "flags"], 0),
        (None, vec!["flags", "--token-file", &wrong], 6),
        (None, vec!["flags", "--token-file", "/nonexistent"], 6),
        (
            Some("fedcba9876543210-token"),
            vec!["--token-file", &file, "flags"],
            0,
        ),
        (Some("fedcba9876543210-token"), vec!["flags"], 6),
        (Some(TOKEN), vec!["flags"], 0),
    ] {
        let mut command = ctl(&node.api, &args);
        command.env_remove("DWCP_TOKEN");
        if let Some(token) = env {
            command.env("DWCP_TOKEN", token);
        }
        let got = said(&watchdog(command.output()).await.unwrap());
        assert_eq!(got.code, code, "{env:?} {args:?}: {}", got.err);
        assert!(!got.err.contains("fedcba"), "a token is never printed");
        assert!(code == 0 || got.err.contains("--token-file"), "{}", got.err);
    }
    node.stop.send_replace(true);
    watchdog(node.task).await.unwrap();
}

#[tokio::test]
async fn usage_and_an_absent_control_plane_have_their_codes() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let api = format!("http://{nobody}");
    for args in [
        &["flags"][..],
        &["status"],
        &["health"],
        &["rollback"],
        &["nic", "list"],
        &MIGRATE,
    ] {
        let got = run(&api, args).await;
        assert_eq!(got.code, 7, "{args:?}: {}", got.err);
        assert!(
            got.err.contains(&api) && got.err.contains("next:"),
            "{}",
            got.err
        );
    }
    for args in [&[][..], &["migrate"], &["nonsense"], &["flags", "set", "x"]] {
        assert_eq!(run(&api, args).await.code, 2, "{args:?}");
    }
    let help = run(&api, &["--help"]).await;
    assert_eq!(help.code, 0);
    for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "7 ", "9 ", "130 "] {
        assert!(
            help.out.contains(&format!("\n  {code}")),
            "{code} is not documented"
        );
    }
}

// The stand-in.

#[tokio::test]
async fn each_outcome_has_its_code_and_its_words() {
    for (end, code, out, err) in [
        ("completed", 0, "downtime 42 ms", ""),
        ("failed", 1, "failed", "next: plug it in"),
        ("cancelled", 3, "cancelled", ""),
        ("failed_unknown", 9, "failed", "held on both sides"),
    ] {
        let api = StandIn::start("127.0.0.1:0", end).await;
        let got = run(
            &api.url(),
            &migrate(&["--name", "guest", "--bandwidth-limit", "10M"]),
        )
        .await;
        assert_eq!(got.code, code, "{end}: {}", got.err);
        assert!(
            got.out.contains(out) && got.out.contains("guest"),
            "{end}: {}",
            got.out
        );
        assert!(got.err.contains(err), "{end}: {}", got.err);
        assert_eq!(
            got.out.lines().count(),
            1,
            "only the result on standard output"
        );
        // Plain lines, since this is no terminal.
        assert!(
            got.err.contains("saved 75 %") && !got.err.contains('\x1b'),
            "{}",
            got.err
        );
        let asked = api.started();
        assert_eq!(asked["options"]["bandwidth_limit_bytes_per_s"], 10_000_000);
        assert_eq!(asked["vm"]["qmp"], "/run/a.qmp");
    }
}

#[tokio::test]
async fn postcopy_is_asked_for_in_the_words_of_the_api_or_not_at_all() {
    let api = StandIn::start("127.0.0.1:0", "completed").await;
    for (more, postcopy, auto) in [
        (&[][..], Value::Null, Value::Null),
        (&["--postcopy"], "after_first_pass".into(), Value::Null),
        (
            &["--postcopy=1500", "--no-auto-recover"],
            serde_json::json!({ "after_ms": 1500 }),
            false.into(),
        ),
    ] {
        assert_eq!(run(&api.url(), &migrate(more)).await.code, 0);
        let options = &api.started()["options"];
        assert_eq!(options["postcopy"], postcopy, "{more:?}");
        assert_eq!(options["postcopy_auto_recover"], auto, "{more:?}");
    }
    let got = run(&api.url(), &migrate(&["--no-auto-recover"])).await;
    assert_eq!(got.code, 2, "{}", got.err);
}

#[tokio::test]
async fn json_and_detach_are_for_programs() {
    let api = StandIn::start("127.0.0.1:0", "completed").await;
    let got = run(&api.url(), &migrate(&["--json"])).await;
    let view: Value = serde_json::from_str(&got.out).unwrap();
    assert_eq!((got.code, &view["state"]), (0, &Value::from("completed")));
    let got = run(&api.url(), &migrate(&["--detach"])).await;
    assert_eq!((got.code, got.out.trim()), (0, ID));
    let got = run(&api.url(), &["status", ID, "--watch", "--json"]).await;
    assert_eq!(got.code, 0);
    assert!(got.out.lines().count() >= 2);
    assert!(
        got.out
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
    );
}

#[tokio::test]
async fn a_timeout_cancels_and_says_so() {
    let api = StandIn::start("127.0.0.1:0", "forever").await;
    let got = run(&api.url(), &migrate(&["--timeout", "1"])).await;
    assert_eq!(got.code, 4, "{}", got.err);
    assert!(got.out.contains("cancelled") && api.cancelled());
}

/// Sends SIGINT as a terminal would.
fn interrupt(process: &tokio::process::Child) {
    let pid = process.id().unwrap().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn ctrl_c_cancels_and_a_second_one_lets_go() {
    let api = StandIn::start("127.0.0.1:0", "forever").await;
    let process = ctl(&api.url(), &migrate(&[])).spawn().unwrap();
    watchdog(api.followed(1)).await;
    interrupt(&process);
    let got = said(&watchdog(process.wait_with_output()).await.unwrap());
    assert_eq!(got.code, 130, "{}", got.err);
    assert!(
        api.cancelled() && got.out.contains("cancelled"),
        "{}",
        got.out
    );

    let api = StandIn::start("127.0.0.1:0", "deaf").await;
    let process = ctl(&api.url(), &migrate(&[])).spawn().unwrap();
    watchdog(api.followed(1)).await;
    interrupt(&process);
    watchdog(api.asked_to_cancel()).await;
    interrupt(&process);
    let got = said(&watchdog(process.wait_with_output()).await.unwrap());
    assert_eq!((got.code, got.out.as_str()), (130, ""), "{}", got.err);
    assert!(got.err.contains("status"), "{}", got.err);
}

#[tokio::test]
async fn a_broken_stream_becomes_polling() {
    let api = StandIn::start("127.0.0.1:0", "no_stream").await;
    let got = run(&api.url(), &migrate(&[])).await;
    assert_eq!(got.code, 0, "{}", got.err);
    assert!(got.err.contains("asking once a second"), "{}", got.err);
}

#[tokio::test]
async fn a_control_plane_that_comes_back_is_joined_again() {
    let api = StandIn::start("127.0.0.1:0", "forever").await;
    let process = ctl(&api.url(), &migrate(&[])).spawn().unwrap();
    watchdog(api.followed(1)).await;
    let address = api.stop().await;
    // Long enough that the program has noticed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _api = StandIn::start(&address, "completed").await;
    let got = said(&watchdog(process.wait_with_output()).await.unwrap());
    assert_eq!(got.code, 0, "{}", got.err);
    assert!(
        got.err.contains("does not answer; the migration goes on"),
        "{}",
        got.err
    );
    assert!(got.err.contains("is back after"), "{}", got.err);
}

#[tokio::test]
async fn rollback_waits_for_the_first_v1_batch() {
    let api = StandIn::start("127.0.0.1:0", "forever").await;
    let got = run(&api.url(), &["rollback"]).await;
    assert_eq!(got.code, 0, "{}", got.err);
    assert!(got.out.contains("in force after 37 µs"), "{}", got.out);
    assert!(
        got.err.contains("first v1 batch 900 µs after the throw"),
        "{}",
        got.err
    );
}

#[tokio::test]
async fn a_reader_that_goes_away_changes_nothing() {
    let api = StandIn::start("127.0.0.1:0", "completed").await;
    let mut process = ctl(&api.url(), &migrate(&[])).spawn().unwrap();
    drop(process.stdout.take());
    drop(process.stderr.take());
    assert_eq!(watchdog(process.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn perf_shows_rates_writes_flame_graphs_and_says_what_is_absent() {
    let api = StandIn::start("127.0.0.1:0", "completed").await;
    let once = ["perf", "top", "--once", "--interval", "1"];
    let top = run(&api.url(), &once).await;
    assert_eq!(top.code, 0, "{}", top.err);
    for word in ["codec", "50.0", "sessions 2"] {
        assert!(top.out.contains(word), "{word} is not in\n{}", top.out);
    }
    let as_json = run(&api.url(), &[&once[..], &["--json"]].concat()).await;
    let rates: Value = serde_json::from_str(&as_json.out).unwrap();
    assert_eq!(rates["stages"][0]["in_bytes_per_s"], 1e6, "{rates}");
    assert_eq!(rates["workers"][0]["parked"], 0.5, "{rates}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("graph").display().to_string();
    let graph = [
        "perf",
        "flamegraph",
        "--folded",
        "-o",
        &file,
        "--seconds",
        "1",
    ];
    let drawn = run(&api.url(), &graph).await;
    assert_eq!(drawn.code, 0, "{}", drawn.err);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, "worker-0;[codec];encode 7\n");
    let nowhere = ["perf", "flamegraph", "-o", "/nowhere/graph.svg"];
    let refused = run(&api.url(), &nowhere).await;
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("-o FILE"), "{}", refused.err);

    let counted = run(&api.url(), &["perf", "hardware"]).await;
    assert_eq!(counted.code, 0, "{}", counted.err);
    assert!(counted.out.contains("worker-0") && counted.out.contains("cycles absent"));
}

#[tokio::test]
async fn perf_without_a_data_plane_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    for command in [
        vec!["perf", "top", "--once"],
        vec!["perf", "hardware"],
        vec!["perf", "flamegraph", "-o", "/dev/null"],
    ] {
        let said = run(&node.api, &command).await;
        assert_eq!(said.code, 1, "{command:?}: {}", said.err);
        assert!(said.err.contains("start dwcp-dataplane"), "{}", said.err);
    }
    node.stop.send_replace(true);
    node.task.await.unwrap();
}
