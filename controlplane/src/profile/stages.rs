//! Which stage of the data plane a function belongs to.
//!
//! In: a function's name. Out: its stage, if it says one. The stages are those of the counters, so that a
//! flame graph and `dwcpctl perf top` speak of the same parts. Functions that say none, such as the
//! compressor's or the kernel's, belong to whoever called them.

use dwcp_api::Stage;

/// Parts of names; the first that fits counts, so exceptions stand first.
const RULES: &[(&str, Stage)] = &[
    // Where one module does the work of two stages.
    ("intake::Intake>::cut", Stage::Stream),
    ("intake::Intake::cut", Stage::Stream),
    ("::on_data", Stage::Decode),
    ("::pump_receive", Stage::Transport),
    ("::on_frame", Stage::Transport),
    ("::pump_release", Stage::Release),
    ("::pump_lanes", Stage::Transport),
    ("dwcp_dataplane::codec::decoder", Stage::Decode),
    ("dwcp_dataplane::codec::rebuild", Stage::Decode),
    // The modules.
    ("dwcp_dataplane::intake::", Stage::Intake),
    ("dwcp_dataplane::stream::", Stage::Stream),
    ("dwcp_dataplane::codec::", Stage::Codec),
    ("dwcp_dataplane::transport::", Stage::Transport),
    ("dwcp_dataplane::release::", Stage::Release),
    ("dwcp_drivers::tcp::", Stage::Lanes),
    ("dwcp_drivers::rdma::", Stage::Lanes),
    ("dwcp_drivers::dpdk::", Stage::Lanes),
    ("dwcp_drivers::loopback::", Stage::Lanes),
    ("dwcp_dataplane::engine::", Stage::Engine),
];

/// The stage that a function's name says.
pub(super) fn stage_of(function: &str) -> Option<Stage> {
    if !function.contains("dwcp_") {
        return None;
    }
    RULES
        .iter()
        .find(|(part, _)| function.contains(part))
        .map(|(_, stage)| *stage)
}

/// What stands in a stack where a stage begins.
pub(super) fn label(stage: Stage) -> String {
    format!("[{stage}]")
}

/// The stage of such a label.
pub(super) fn of_label(name: &str) -> Option<Stage> {
    let inner = name.strip_prefix('[')?.strip_suffix(']')?;
    Stage::ALL
        .iter()
        .copied()
        .find(|stage| stage.as_str() == inner)
}

/// The stage after a function was called in `current`.
pub(super) fn next(current: Option<Stage>, function: &str) -> Option<Stage> {
    match (current, stage_of(function)) {
        // The decoder uses parts of the encoder's: still decoding.
        (Some(Stage::Decode), Some(Stage::Codec)) => current,
        (_, Some(stage)) => Some(stage),
        (_, None) => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_belong_to_stages_whichever_way_their_names_are_written() {
        for (name, stage) in [
            (
                "<dwcp_dataplane::intake::Intake>::read",
                Some(Stage::Intake),
            ),
            ("dwcp_dataplane::intake::Intake::read", Some(Stage::Intake)),
            ("<dwcp_dataplane::intake::Intake>::cut", Some(Stage::Stream)),
            (
                "<dwcp_dataplane::session::Session>::on_data::<T>",
                Some(Stage::Decode),
            ),
            (
                "dwcp_dataplane::session::receive::<impl dwcp_dataplane::session::Session>::pump_release",
                Some(Stage::Release),
            ),
            (
                "<dwcp_drivers::tcp::lanes::TcpLanes as LaneGroup>::poll",
                Some(Stage::Lanes),
            ),
            (
                "<dwcp_dataplane::engine::worker::Worker<G>>::run",
                Some(Stage::Engine),
            ),
            ("ZSTD_compressBlock", None),
            ("other::on_data", None),
            ("<dwcp_drivers::frame::FramePools>::take", None),
        ] {
            assert_eq!(stage_of(name), stage, "{name}");
        }
    }

    #[test]
    fn decoding_stays_decoding_and_labels_read_back() {
        let codec = "dwcp_dataplane::codec::digest::Chain::verify";
        assert_eq!(next(Some(Stage::Decode), codec), Some(Stage::Decode));
        assert_eq!(next(Some(Stage::Transport), codec), Some(Stage::Codec));
        assert_eq!(
            next(Some(Stage::Lanes), "tcp_sendmsg_[k]"),
            Some(Stage::Lanes)
        );
        for stage in Stage::ALL {
            assert_eq!(of_label(&label(*stage)), Some(*stage));
        }
        assert_eq!(of_label("[vdso]"), None);
    }
}
