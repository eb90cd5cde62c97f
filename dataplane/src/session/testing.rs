//! What two sides agreed on, for tests that need no handshake.

use dwcp_api::SessionId;

use crate::transport::handshake::{Agreed, Join, LaneSecret, LaneWay, Purpose, SessionParams, Way};
use crate::transport::wire::keys::{KeyHalf, SessionKey};
use crate::transport::{LaneIx, NodeId, SessionEpoch, Version};

/// In version 3, with a small page store and a wide window.
pub fn agreed() -> Agreed {
    let (session, epoch) = (SessionId([1; 16]), SessionEpoch(2));
    let (initiator, acceptor) = (NodeId::of_name("a"), NodeId::of_name("b"));
    let halves = [KeyHalf([3; 32]), KeyHalf([4; 32])];
    Agreed {
        session,
        epoch,
        initiator,
        acceptor,
        lane: LaneIx(0),
        lane_attempt: 0,
        join: Join::New,
        purpose: Purpose::Expected,
        version: Version::V3,
        params: SessionParams {
            page_store_bytes: 2 << 20,
            window_limit_bytes: 64 << 20,
            lanes_v1: 1,
            lanes_v3: 1,
            baselines: false,
        },
        key: SessionKey::of_halves(
            [&halves[0], &halves[1]],
            session,
            initiator,
            acceptor,
            epoch,
        ),
        way: LaneWay {
            initiator: Way::Tcp,
            acceptor: Way::Tcp,
            secret: LaneSecret([5; 32]),
        },
    }
}
