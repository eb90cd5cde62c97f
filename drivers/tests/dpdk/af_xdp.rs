//! Two hosts joined by a cable, each with the kernel's interface taken over by AF_XDP.

use std::time::Duration;

use dwcp_drivers::dpdk::device::Device;
use dwcp_drivers::dpdk::port::PortPlan;
use dwcp_lab::netns::{Cable, Host};

use crate::other::Other;
use crate::scene::{Side, host, role};

const CABLE: u8 = 1;

#[test]
fn two_hosts_exchange_datagrams_over_a_cable() {
    let device = Device::AfXdp {
        interface: format!("lan{CABLE}"),
    };
    let plan = PortPlan {
        queues: 1,
        mtu_bytes: 1500,
        packets_per_queue: 8192,
    };
    match role().as_deref() {
        Some("echo") => return Side::open(&device, &plan, 2).echo(),
        Some(_) => {
            let mut side = Side::open(&device, &plan, 1);
            side.converse(2);
            side.ask(host(2, false), b"end", Duration::from_secs(1));
            return;
        }
        None => {}
    }
    let (near, far) = (Host::new("xdp-a").unwrap(), Host::new("xdp-b").unwrap());
    let _cable = Cable::lan(&near, &far, CABLE).unwrap();
    let test = "af_xdp::two_hosts_exchange_datagrams_over_a_cable";
    let program = std::env::current_exe().unwrap();
    let run = |at: &Host, role| Other::run(at.command(&program), test, role);
    let mut echo = run(&far, "echo");
    let mut asking = run(&near, "ask");
    assert!(asking.wait().success());
    assert!(echo.wait().success());
}
