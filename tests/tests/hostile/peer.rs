//! A peer that may have the key and does with it what it likes: the initiator of the handshake and
//! frames of any content, by the data plane's own code.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use arrayvec::ArrayString;
use dwcp_api::SessionId;
use dwcp_dataplane::codec::{Chain, Direction as ChainDirection};
use dwcp_dataplane::transport::handshake::{
    Initiator, InitiatorConfig, InitiatorStep, Join, Proof, Purpose, RefuseReason, SessionParams,
    Way,
};
use dwcp_dataplane::transport::wire::batch::{
    BATCH_HEADER_BYTES, ChannelKind, DataHeader, MAX_MARKER_BYTES, Marker, seal_data, seal_marker,
};
use dwcp_dataplane::transport::wire::control::{ControlFrame, ControlSealer, MAX_CONTROL_BYTES};
use dwcp_dataplane::transport::wire::keys::{Direction, FrameKeys, Psk};
use dwcp_dataplane::transport::{BatchSeq, ChannelId, LaneIx, NodeId, SessionEpoch, Version};
use dwcp_tests::pair::{PSK, TARGET};

const PATIENCE: Duration = Duration::from_secs(60);

/// The key that a data plane makes of its key file.
pub fn psk(text: &str) -> Psk {
    Psk(blake3::derive_key("dwcp pre-shared key", text.as_bytes()))
}

/// Sixteen bytes that differ with each call.
pub fn fresh_id() -> SessionId {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).unwrap();
    SessionId(id)
}

/// What a well-behaved peer would propose for session `id`.
pub fn proposal(id: SessionId) -> InitiatorConfig {
    InitiatorConfig {
        proof: Proof::Node(psk(PSK)),
        node: NodeId::of_name("liar"),
        peer: None,
        session: id,
        epoch: SessionEpoch(0),
        lane: LaneIx(0),
        lane_attempt: 0,
        join: Join::New,
        purpose: Purpose::Passive {
            target: ArrayString::from(TARGET).unwrap(),
        },
        highest: Version::V3,
        params: SessionParams {
            page_store_bytes: 16 << 20,
            window_limit_bytes: 8 << 20,
            lanes_v1: 8,
            lanes_v3: 4,
            baselines: false,
        },
        way: Way::Tcp,
    }
}

/// How a handshake ended.
#[derive(Debug)]
pub enum Knocked {
    /// Frames may follow.
    In(Box<Peer>),
    /// Turned away with a reason; whether the other side vouched for it with the key.
    Refused(RefuseReason, bool),
    /// The connection ended.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub struct Peer {
    /// The lanes, in the order they were opened.
    pub lanes: Vec<TcpStream>,
    /// What was said in the handshake of the first lane, each message whole.
    pub said: Vec<Vec<u8>>,
    /// What keeps the batches in sequence.
    pub seq: u64,
    config: InitiatorConfig,
    address: SocketAddr,
    keys: FrameKeys,
    sealer: ControlSealer,
}

/// A connection on which no read or write waits for ever.
pub fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Is there nothing more to be read but the end of the connection, cut or not?
pub fn ends(stream: &mut TcpStream) -> bool {
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Goes through a handshake.
pub fn knock(address: SocketAddr, config: &InitiatorConfig) -> Knocked {
    knock_on(dial(address), address, config)
}

/// The same on a connection that is there.
pub fn knock_on(mut stream: TcpStream, address: SocketAddr, config: &InitiatorConfig) -> Knocked {
    let nonce = *blake3::hash(&fresh_id().0).as_bytes();
    let (mut initiator, hello) = Initiator::new(config.clone(), nonce);
    let mut said = vec![hello.to_vec()];
    if stream.write_all(&hello).is_err() {
        return Knocked::Closed;
    }
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => {}
            Ok(_) => return Knocked::Closed,
            Err(error) => {
                assert_ne!(
                    error.kind(),
                    ErrorKind::WouldBlock,
                    "no answer to the handshake"
                );
                return Knocked::Closed;
            }
        }
        match initiator
            .feed(&byte)
            .expect("the acceptor speaks the protocol")
            .1
        {
            None => {}
            Some(InitiatorStep::Send(proof)) => {
                said.push(proof.to_vec());
                if stream.write_all(&proof).is_err() {
                    return Knocked::Closed;
                }
            }
            Some(InitiatorStep::Refused { reason, verified }) => {
                return Knocked::Refused(reason, verified);
            }
            Some(InitiatorStep::Done { agreed, .. }) => {
                let keys = agreed.key.frame_keys(Direction::ToAcceptor);
                return Knocked::In(Box::new(Peer {
                    lanes: vec![stream],
                    said,
                    seq: 0,
                    config: config.clone(),
                    address,
                    sealer: ControlSealer::new(keys.clone(), config.epoch),
                    keys,
                }));
            }
        }
    }
}

impl Peer {
    /// A peer with the key whose first lane is up.
    pub fn join(address: SocketAddr, config: &InitiatorConfig) -> Self {
        match knock(address, config) {
            Knocked::In(peer) => *peer,
            other => panic!("not let in: {other:?}"),
        }
    }

    /// Names a manifest as the source of this session does.
    pub fn offer_tag(&self, tenant: &str, id: &[u8; 32]) -> [u8; 16] {
        self.keys.offer_tag(tenant, id)
    }

    /// Its session.
    pub fn session(&self) -> SessionId {
        self.config.session
    }

    /// Opens another lane.
    pub fn add_lane(&mut self, lane: u16) {
        let config = InitiatorConfig {
            lane: LaneIx(lane),
            ..self.config.clone()
        };
        let Knocked::In(mut other) = knock(self.address, &config) else {
            panic!("not let in")
        };
        self.lanes.append(&mut other.lanes);
    }

    /// The digest chain of one of our channels.
    pub fn chain(&self, channel: u16) -> Chain {
        let key = self.keys.chain_key();
        Chain::new(key, channel, ChainDirection::ToDestination)
    }

    /// Writes bytes as they are. A connection that was closed meanwhile is no news.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.lanes[0].write_all(bytes);
    }

    /// Writes one frame with its length in front.
    pub fn frame(&mut self, frame: &[u8]) {
        let length = (frame.len() as u32).to_le_bytes();
        self.write(&[&length[..], frame].concat());
    }

    /// The next place in the sequence.
    pub fn take_seq(&mut self) -> BatchSeq {
        self.seq += 1;
        BatchSeq(self.seq - 1)
    }

    /// Sends a batch that carries no bytes.
    pub fn marker(&mut self, channel: u16, marker: &Marker<'_>) {
        let seq = self.take_seq();
        let mut frame = [0; MAX_MARKER_BYTES];
        let bytes = seal_marker(&self.keys, seq, ChannelId(channel), marker, &mut frame).unwrap();
        self.frame(&frame[..bytes]);
    }

    /// Opens a channel as an honest peer would.
    pub fn open(&mut self, channel: u16) {
        self.marker(channel, &Marker::Open(ChannelKind::Main));
    }

    /// A sealed batch, whatever it says: what no honest sender may write is sealed too.
    pub fn sealed(&self, header: &DataHeader, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; BATCH_HEADER_BYTES];
        frame.extend_from_slice(payload);
        // The complaint comes after the header was written and its tag made.
        let _ = seal_data(&self.keys, header, &mut frame);
        frame
    }

    /// The header of raw bytes sent as they are, at the next place in the sequence.
    pub fn plain(
        &mut self,
        chain: &mut Chain,
        channel: u16,
        offset: u64,
        raw: &[u8],
    ) -> DataHeader {
        let seq = self.take_seq();
        DataHeader {
            version: Version::V3,
            method: dwcp_dataplane::codec::Method::Passthrough.code(),
            flags: 0,
            channel: ChannelId(channel),
            seq,
            offset,
            raw_len: raw.len() as u32,
            digest: chain.advance(seq.0, offset, raw),
        }
    }

    /// Sends a control frame.
    pub fn control(&mut self, frame: &ControlFrame) {
        let mut bytes = [0; MAX_CONTROL_BYTES];
        let length = self.sealer.seal(frame, &mut bytes);
        self.frame(&bytes[..length]);
    }
}
