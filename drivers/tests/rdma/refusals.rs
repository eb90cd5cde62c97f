//! Hosts on which RDMA cannot be had: each says what would help.

use dwcp_drivers::conformance::check;
use dwcp_drivers::port::{OpenError, Port, PortConfig};

use crate::scene::{PATIENCE, TOKEN, closed_port, far, near, port, prepared, role};

/// As somebody who has no rights of his own.
const NOBODY: &str = "exec setpriv --reuid 65534 --regid 65534 --clear-groups";

fn refusal() -> String {
    match closed_port().open(PortConfig::default()) {
        Err(OpenError::Probe(cause)) => cause.to_string(),
        Err(other) => panic!("{other}"),
        Ok(()) => panic!("opened"),
    }
}

#[test]
fn a_host_without_devices_says_what_is_missing() {
    const TEST: &str = "refusals::a_host_without_devices_says_what_is_missing";
    if role().is_some() {
        let said = refusal();
        assert!(
            said.contains("`rdma link`") && said.contains("rdma_ucm"),
            "{said}"
        );
        assert!(said.contains("No such file"), "{said}");
        return;
    }
    check(|| {
        let hidden = "mount -t tmpfs none /dev/infiniband; exec \"$@\"";
        assert!(prepared(hidden, TEST, "hidden").wait().success());
    });
}

#[test]
fn a_user_without_rights_is_told_which() {
    const TEST: &str = "refusals::a_user_without_rights_is_told_which";
    if role().is_some() {
        let said = refusal();
        assert!(said.contains("/dev/infiniband"), "{said}");
        assert!(said.contains("Permission denied"), "{said}");
        return;
    }
    check(|| {
        let locked = format!(
            "cp -a /dev/infiniband /tmp/locked; mount -t tmpfs none /dev/infiniband\n\
             cp -a /tmp/locked/. /dev/infiniband; chmod 755 /dev/infiniband\n\
             chmod 600 /dev/infiniband/*; {NOBODY} \"$@\""
        );
        assert!(prepared(&locked, TEST, "locked").wait().success());
    });
}

#[test]
fn memory_that_may_not_be_locked_is_told() {
    const TEST: &str = "refusals::memory_that_may_not_be_locked_is_told";
    if let Some(to) = role() {
        let port = port();
        let connector = port.connector().unwrap();
        let to = to.parse().unwrap();
        let refused = connector.connect(Some(far()), to, &TOKEN, PATIENCE);
        let said = refused.err().unwrap().to_string();
        assert!(said.contains("RLIMIT_MEMLOCK"), "{said}");
        return;
    }
    check(|| {
        let port = port();
        let listener = port.connector().unwrap().listen(near()).unwrap();
        let poor = format!(
            "cp -a /dev/infiniband /tmp/open; mount -t tmpfs none /dev/infiniband\n\
             cp -a /tmp/open/. /dev/infiniband; chmod 755 /dev/infiniband\n\
             chmod 666 /dev/infiniband/*; ulimit -l 64; {NOBODY} \"$@\""
        );
        assert!(
            prepared(&poor, TEST, &listener.local_addr().to_string())
                .wait()
                .success()
        );
    });
}
