//! The conformance suite over reliable lanes: on a clean network, and on one that loses, doubles, reorders
//! and corrupts.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use dwcp_drivers::conformance::Harness;
use dwcp_drivers::frame::{Frame, FramePools};
use dwcp_drivers::lane::{
    AddError, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, WireBytes,
};
use dwcp_drivers::loopback::{FaultMangler, FaultRates};
use dwcp_drivers::reliable::memory::{MemoryNetwork, MemoryPort};
use dwcp_drivers::reliable::{
    Congestion, Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};

/// An end, and the address at which the peer looks for it.
struct End {
    endpoint: ReliableEndpoint,
    address: Option<SocketAddr>,
}

/// A group whose port takes the address of each end that is added to it: the suite makes pairs before
/// it says which group an end goes to.
struct Lanes(ReliableLanes<MemoryPort>);

impl LaneGroup for Lanes {
    type Endpoint = End;

    fn add(&mut self, end: End, pools: &FramePools) -> Result<LaneId, AddError> {
        if let Some(address) = end.address {
            self.0.port().bind(address);
        }
        self.0.add(end.endpoint, pools)
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        self.0.submit(lane, frame)
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        self.0.poll(out)
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        self.0.backlog_bytes(lane)
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        self.0.wire_bytes(lane)
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        self.0.stats(lane)
    }

    fn close(&mut self, lane: LaneId) {
        self.0.close(lane);
    }

    fn finish(&mut self, lane: LaneId) {
        self.0.finish(lane);
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.park_fd()
    }

    fn prepare_park(&mut self) -> bool {
        self.0.prepare_park()
    }
}

struct Reliable {
    network: MemoryNetwork,
    protection: Protection,
    congestion: Congestion,
    faults: FaultRates,
    seed: AtomicU64,
}

impl Reliable {
    fn new(
        payload: usize,
        protection: Protection,
        congestion: Congestion,
        faults: FaultRates,
    ) -> Self {
        Self {
            network: MemoryNetwork::new(8192, payload),
            protection,
            congestion,
            faults,
            seed: AtomicU64::new(1),
        }
    }
}

impl Harness for Reliable {
    type Lanes = Lanes;

    fn lanes(&self) -> Lanes {
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        let port = self.network.port().unwrap();
        let port = port.mangled(Box::new(FaultMangler::new(seed, self.faults)));
        let config = ReliableConfig {
            congestion: self.congestion,
            ..ReliableConfig::default()
        };
        Lanes(ReliableLanes::new(port, config).unwrap())
    }

    fn pair(&self) -> (End, End) {
        let number = self.seed.fetch_add(1, Ordering::Relaxed);
        let address = self.network.address();
        let end = |meeting, address| End {
            endpoint: ReliableEndpoint {
                meeting,
                connection: number,
                secret: [number as u8; 32],
                protection: self.protection,
            },
            address,
        };
        (
            end(Meeting::Connect(address), None),
            end(Meeting::Accept, Some(address)),
        )
    }

    fn raw(&self) -> Option<(End, Box<dyn Write + Send>)> {
        None // datagrams have no bare byte stream below them
    }
}

const CLEAN: FaultRates = FaultRates {
    drop_ppm: 0,
    repeat_ppm: 0,
    swap_ppm: 0,
    delay_ppm: 0,
    corrupt_ppm: 0,
    cut_ppm: 0,
};

/// 3 % lost, 3 % of each other kind.
const FAULTY: FaultRates = FaultRates {
    drop_ppm: 30_000,
    repeat_ppm: 30_000,
    swap_ppm: 30_000,
    delay_ppm: 30_000,
    corrupt_ppm: 30_000,
    cut_ppm: 0,
};

dwcp_drivers::conformance_suite!(
    tagged_cubic,
    super::Reliable::new(
        4160,
        super::Protection::Tagged,
        super::Congestion::Cubic,
        super::CLEAN
    )
);
dwcp_drivers::conformance_suite!(
    sealed_bbr,
    super::Reliable::new(
        1472,
        super::Protection::Sealed,
        super::Congestion::Bbr,
        super::CLEAN
    )
);
dwcp_drivers::conformance_suite!(
    faulty_cubic,
    super::Reliable::new(
        8900,
        super::Protection::Sealed,
        super::Congestion::Cubic,
        super::FAULTY
    )
);
dwcp_drivers::conformance_suite!(
    faulty_bbr,
    super::Reliable::new(
        4160,
        super::Protection::Tagged,
        super::Congestion::Bbr,
        super::FAULTY
    )
);
dwcp_drivers::conformance_suite!(
    faulty_headers,
    super::Reliable::new(
        4160,
        super::Protection::Headers,
        super::Congestion::Cubic,
        super::FAULTY
    )
);
