//! `dwcpctl tokens` and `audit` against a real control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{ctl, node, run, said, watchdog};

#[tokio::test]
async fn a_token_is_printed_once_serves_its_scope_and_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let api = node.api.as_str();
    let made = run(api, &["tokens", "create", "ci", "--scope", "read"]).await;
    assert_eq!(made.code, 0, "{}", made.err);
    let token = made.out.trim();
    let id = token.split('_').nth(1).unwrap();
    let as_ci = async |args: &[&str]| {
        said(
            &watchdog(ctl(api, args).env("DWCP_TOKEN", token).output())
                .await
                .unwrap(),
        )
    };
    assert_eq!(as_ci(&["flags"]).await.code, 0);
    let refused = as_ci(&["rollback"]).await;
    assert!(
        refused.code == 5 && refused.err.contains("operate"),
        "{}",
        refused.err
    );
    let list = run(api, &["tokens", "list"]).await.out;
    assert!(list.contains(id) && !list.contains(token), "{list}");
    assert_eq!(run(api, &["tokens", "revoke", id]).await.code, 0);
    assert_eq!(as_ci(&["flags"]).await.code, 6);
    let audit = run(api, &["audit"]).await.out;
    let made = "201 POST /v1/tokens by 127.0.0.1 (alice) with token_file";
    assert!(audit.contains(made), "{audit}");
    let nobody = run("https://127.0.0.1:1", &["flags"]).await;
    assert!(
        nobody.code == 2 && nobody.err.contains("--ca"),
        "{}",
        nobody.err
    );
    node.stop.send_replace(true);
    watchdog(node.task).await.unwrap();
}
