//! A peer that has the key and acknowledges what nobody sent: its session fails closed with the reason.

use dwcp_api::Failure;
use dwcp_dataplane::transport::wire::batch::{AbortReason, Marker};
use dwcp_dataplane::transport::wire::control::{Ack, ByeReason, ControlFrame, Sack};
use dwcp_dataplane::transport::{BatchSeq, ChannelId, Nanos};
use dwcp_tests::pair::PairOptions;

use crate::beside::Stage;
use crate::liar::lie;

/// What turns an honest acknowledgement into a lie.
type Change = fn(&mut Ack);

#[test]
fn acknowledgements_of_what_was_never_sent() {
    let mut stage = Stage::start(PairOptions::default());
    let honest = || Ack {
        next_seq: BatchSeq(0),
        sack: Sack::default(),
        total_delivered_bytes: 0,
        echo: None,
        echo_held_ns: 0,
        delivered: arrayvec::ArrayVec::new(),
    };
    let ack = |change: Change| {
        let mut ack = honest();
        change(&mut ack);
        ControlFrame::Ack(ack)
    };
    let lies: [(&str, Change); 6] = [
        ("batches never sent", |ack| ack.next_seq = BatchSeq(1)),
        ("all batches there can be", |ack| {
            ack.next_seq = BatchSeq(u64::MAX)
        }),
        ("a batch never sent, alone", |ack| ack.sack.set(255)),
        ("bytes never sent", |ack| ack.total_delivered_bytes = 1),
        ("bytes never sent on a channel", |ack| {
            ack.delivered.push((ChannelId(0), u64::MAX))
        }),
        ("bytes on no channel", |ack| {
            ack.delivered.push((ChannelId(200), 1))
        }),
    ];
    for (what, change) in lies {
        lie(&mut stage, what, Failure::Protocol, |liar| {
            liar.peer.control(&ack(change))
        });
    }
    // Times that cannot be are no reason to end; the clocks of peers lie.
    lie(
        &mut stage,
        "times that cannot be, then a goodbye",
        Failure::PeerAborted,
        |liar| {
            for at in [0, 1, u64::MAX] {
                let mut ack = honest();
                (ack.echo, ack.echo_held_ns) = (Some(Nanos(at)), u64::MAX - at);
                liar.peer.control(&ControlFrame::Ack(ack));
                liar.peer.control(&ControlFrame::Ping(Nanos(at)));
                liar.peer.control(&ControlFrame::Pong(Nanos(at)));
            }
            liar.peer.control(&ControlFrame::Bye(ByeReason::Aborted));
        },
    );
    lie(&mut stage, "an abort", Failure::PeerAborted, |liar| {
        liar.peer.marker(
            0,
            &Marker::Abort {
                reason: AbortReason::Cancelled,
                text: "enough",
            },
        );
    });
    stage.finish();
}
