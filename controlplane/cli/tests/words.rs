//! What the program says again and again, and what it says of itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{ctl, node, run, watchdog};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test]
async fn a_watch_tells_each_change_once() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let api = node.api.as_str();
    let mut watching = ctl(api, &["--json", "flags", "--watch"]).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = watchdog(lines.next_line()).await.unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let share = |answer: &Value| answer["flags"][1]["percentage"].clone();
    assert_eq!(share(&next().await), 100);
    for percentage in ["7", "8"] {
        let set = ["flags", "set", "dwcp_v3_hde", "--percentage", percentage];
        assert_eq!(run(api, &set).await.code, 0);
        assert_eq!(share(&next().await).to_string(), percentage);
    }
    watching.kill().await.unwrap();
    // What shows itself again is nothing that one changes something with.
    let both = [
        "flags",
        "--watch",
        "set",
        "dwcp_v3_hde",
        "--percentage",
        "9",
    ];
    assert_eq!(run(api, &both).await.code, 2);
    for what in ["status", "mode", "cluster", "health"] {
        let mut watching = ctl(api, &[what, "--watch"]).spawn().unwrap();
        let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
        let line = watchdog(lines.next_line()).await.unwrap();
        assert!(line.is_some(), "{what}");
        watching.kill().await.unwrap();
    }
    node.stop.send_replace(true);
    watchdog(node.task).await.unwrap();
    let gone = run(api, &["cluster", "--watch"]).await;
    assert_eq!(gone.code, 7, "{}", gone.err);
}

#[tokio::test]
async fn completions_and_manual_pages_need_no_control_plane() {
    let nobody = "http://127.0.0.1:9";
    for shell in ["bash", "zsh", "fish"] {
        let script = run(nobody, &["completions", shell]).await;
        assert_eq!(script.code, 0, "{}", script.err);
        assert!(script.out.contains("rollback") && script.out.contains("dwcpctl"));
    }
    let script = run(nobody, &["completions", "bash"]).await.out;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dwcpctl.bash");
    std::fs::write(&file, script).unwrap();
    // As a shell completes `dwcpctl rollb`.
    let asked = format!(
        "source {}; COMP_WORDS=(dwcpctl rollb); COMP_CWORD=1; _dwcpctl dwcpctl rollb dwcpctl; echo \"${{COMPREPLY[@]}}\"",
        file.display()
    );
    let said = std::process::Command::new("bash")
        .args(["-c", &asked])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(said.stdout).unwrap().trim(), "rollback");

    let pages = folder.path().join("man");
    let made = run(nobody, &["man", pages.to_str().unwrap()]).await;
    assert_eq!(made.code, 0, "{}", made.err);
    for page in ["dwcpctl.1", "dwcpctl-migrate.1", "dwcpctl-flags-set.1"] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH NAME"), "{page}");
    }
    let refused = run(nobody, &["man", "/proc/nowhere"]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("name a folder"), "{}", refused.err);
}
