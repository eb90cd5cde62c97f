//! A peer that has the secret and says what it likes, for the fuzz target `reliable` and nothing else.
//!
//! Comes in: the secret of a lane, the other side's WELCOME, any content. Goes out: datagrams whose tag is
//! right, whatever they say. Promise: nothing of the format is checked on the way out, so that the other
//! side has to.

use std::net::SocketAddr;

use super::endpoint::{Meeting, ReliableEndpoint};
use super::packet::{Flags, HEADER_BYTES, Header, Kind, Setup, TAG_BYTES, Writer};
use super::seal::Keys;
use super::setup::SetUp;

/// See the module.
pub struct HostilePeer {
    connection: u64,
    set_up: SetUp,
    keys: Option<Keys>,
    max_payload: u16,
}

impl HostilePeer {
    /// The connecting peer of `accepting`, which stands at `there`; its datagrams have at most
    /// `max_payload` bytes.
    #[must_use]
    pub fn new(accepting: &ReliableEndpoint, there: SocketAddr, max_payload: u16) -> Self {
        let endpoint = ReliableEndpoint {
            meeting: Meeting::Connect(there),
            ..*accepting
        };
        let own = Setup {
            max_payload,
            window: 1 << 20,
            nonce: [1; 16],
        };
        Self {
            connection: endpoint.connection,
            set_up: SetUp::new(&endpoint, own, 0),
            keys: None,
            max_payload,
        }
    }

    /// Its HELLO.
    pub fn hello(&mut self) -> Vec<u8> {
        let mut datagram = vec![0; usize::from(self.max_payload)];
        let len = self.set_up.write(0, &mut datagram);
        datagram.truncate(len);
        datagram
    }

    /// Takes the answer to it. False: that was none.
    pub fn hear(&mut self, welcome: &mut [u8]) -> bool {
        let Ok(header) = Header::parse(welcome) else {
            return false;
        };
        let Ok(body) = self.set_up.keys().open(header.number, welcome) else {
            return false;
        };
        let agreed = self.set_up.hear(0, header.kind, body);
        self.keys = agreed.map(|agreed| agreed.keys);
        self.keys.is_some()
    }

    /// A datagram with this kind, these flags, this number and this body, and the tag of the connection, or
    /// of the set-up before there is one.
    #[must_use]
    pub fn say(&self, kind: u8, flags: u16, number: u64, body: &[u8]) -> Vec<u8> {
        let body = &body[..body
            .len()
            .min(usize::from(self.max_payload) - HEADER_BYTES - TAG_BYTES)];
        let mut datagram = vec![0; HEADER_BYTES + body.len() + TAG_BYTES];
        let header = Header {
            kind: Kind::Packet,
            flags: Flags::default(),
            connection: self.connection,
            number,
        };
        let mut writer = Writer::new(&mut datagram);
        header.write(&mut writer);
        writer.space(body.len()).copy_from_slice(body);
        datagram[1] = kind;
        datagram[2..4].copy_from_slice(&flags.to_le_bytes());
        let keys = self.keys.as_ref().unwrap_or(self.set_up.keys());
        let head = datagram.len() - TAG_BYTES;
        keys.seal(number, head, &mut datagram);
        datagram
    }
}
