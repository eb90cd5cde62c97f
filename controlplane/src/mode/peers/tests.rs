use super::*;
use dwcp_api::text::Text;
use dwcp_api::{Role, SessionState};

const MS: u64 = 1_000_000;

/// A running session of `peer` with its sample taken at `ms`.
fn session(id: u8, peer: &str, ms: u64, rtt_us: u64, full_bytes_per_s: u64) -> SessionSnapshot {
    let load = if full_bytes_per_s > 0 {
        PathLoad::Full
    } else {
        PathLoad::Idle
    };
    SessionSnapshot {
        id: SessionId([id; 16]),
        role: Role::Source.code().into(),
        state: SessionState::Active.code().into(),
        peer: Text::clipped(peer),
        path_samples: ms / 100,
        path_sampled_ns: ms * MS,
        path_rtt_us: rtt_us,
        path_load: load.code().into(),
        path_bytes_per_s: full_bytes_per_s,
        ..SessionSnapshot::FREE
    }
}

fn said(mode: Mode) -> Option<Override> {
    Some(Override {
        mode,
        by: "alice".to_owned(),
        since_unix_ms: 1,
    })
}

/// Looks twice at each of ten samples; the sessions as `at` gives them.
fn watch(
    peers: &mut Peers,
    from_ms: u64,
    at: impl Fn(u64) -> Vec<SessionSnapshot>,
) -> Vec<ChangeView> {
    let mut changes = Vec::new();
    for look in 0..20 {
        let sessions = at(from_ms + look / 2 * 100);
        changes.extend(peers.observe(&sessions, 1_000 + look));
    }
    changes
}

#[test]
fn a_sample_counts_once_and_the_change_says_why() {
    let mut peers = Peers::default();
    let near = |ms| vec![session(1, "10.0.0.2:4790", ms, 400, 0)];
    let changes = watch(&mut peers, 1_000, near);
    assert_eq!(changes.len(), 1);
    let change = &changes[0];
    assert_eq!(
        (change.mode, change.by, change.from),
        ("datacenter", "measured", None)
    );
    assert!(
        change.reason.contains("round trip 0.4 ms"),
        "{}",
        change.reason
    );
    let address: IpAddr = "10.0.0.2".parse().unwrap();
    let view = peers.peer_view(address, &near(1_900)).unwrap();
    assert_eq!(view.measured.unwrap().samples, 10);
    assert_eq!(view.sessions[0].sample, 19);
    let orders = peers.orders(&near(1_900));
    assert_eq!(orders, [(SessionId([1; 16]), Mode::Datacenter)]);
    let mut told = near(1_900);
    told[0].mode = Mode::Datacenter.code().into();
    assert!(peers.orders(&told).is_empty());
    told[0].mode = 0;
    told[0].state = SessionState::Completed.code().into();
    assert!(peers.orders(&told).is_empty(), "it is over");
}

#[test]
fn sessions_of_one_peer_are_one_path() {
    let mut peers = Peers::default();
    // Each carries 0.4 Gbit/s of a path of 1.6.
    let four = |ms| {
        (0..4)
            .map(|n: u8| {
                let peer = format!("10.0.0.2:{}", 4_790 + u16::from(n));
                session(n + 1, &peer, ms - u64::from(n) * 20, 25_000, 50_000_000)
            })
            .collect()
    };
    let changes = watch(&mut peers, 1_000, four);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].mode, "hybrid");
    // One alone, and what the others carried once counts no more.
    let one = |ms| {
        let mut sessions: Vec<_> = four(5_000);
        sessions[0] = session(1, "10.0.0.2:4790", ms, 25_000, 50_000_000);
        sessions
    };
    assert_eq!(watch(&mut peers, 6_000, one)[0].mode, "internet");
}

#[test]
fn overrides_of_a_peer_count_before_those_of_all_and_these_before_what_was_measured() {
    let mut peers = Peers::default();
    let at = |ms| {
        vec![
            session(1, "10.0.0.2:4790", ms, 400, 0),
            session(2, "[::ffff:10.0.0.3]:4790", ms, 90_000, 0),
            session(3, "", ms, 400, 0),
        ]
    };
    assert_eq!(watch(&mut peers, 1_000, at).len(), 2);
    let (two, three): (IpAddr, IpAddr) = ("10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap());
    let modes = |peers: &Peers| [two, three].map(|peer| peers.peers[&peer].mode.unwrap());
    assert_eq!(modes(&peers), [Mode::Datacenter, Mode::Internet]);
    assert_eq!(peers.figures().peers, [1, 1, 0]);

    let changes = peers.set(None, said(Mode::Hybrid));
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0].by, "override_of_all");
    let changes = peers.set(Some(three), said(Mode::Datacenter));
    assert_eq!(
        (changes[0].by, changes[0].from),
        ("override_of_peer", Some("hybrid"))
    );
    assert_eq!(modes(&peers), [Mode::Hybrid, Mode::Datacenter]);
    // What is measured goes on, and decides nothing.
    assert!(watch(&mut peers, 3_000, at).is_empty());
    assert_eq!(peers.orders(&at(3_900)).len(), 2);

    peers.set(None, None);
    assert_eq!(modes(&peers), [Mode::Datacenter, Mode::Datacenter]);
    let changes = peers.set(Some(three), None);
    assert_eq!((changes[0].mode, changes[0].by), ("internet", "measured"));
    assert_eq!(peers.figures().changes, [3, 2, 2]);
}

#[test]
fn an_override_that_is_taken_back_before_anything_was_measured_leaves_no_mode() {
    let mut peers = Peers::default();
    let peer: IpAddr = "10.0.0.2".parse().unwrap();
    peers.set(Some(peer), said(Mode::Internet));
    assert_eq!(peers.peer_view(peer, &[]).unwrap().mode, Some("internet"));
    assert!(peers.set(Some(peer), None).is_empty());
    let view = peers.peer_view(peer, &[]).unwrap();
    assert_eq!((view.mode, view.by), (None, None));
    assert!(
        peers
            .set(Some("10.0.0.9".parse().unwrap()), None)
            .is_empty()
    );
}

#[test]
fn peers_are_bounded_and_those_spoken_of_stay() {
    let mut peers = Peers::default();
    let address = |n: usize| IpAddr::from([10, 0, (n / 256) as u8, (n % 256) as u8]);
    for n in 0..PEERS_MAX {
        let room = peers.check_room(Some(address(n)));
        assert_eq!(room.is_ok(), n < PEERS_MAX / 2, "{n}");
        if room.is_ok() {
            peers.set(Some(address(n)), said(Mode::Hybrid));
        }
    }
    assert!(peers.check_room(Some(address(0))).is_ok(), "it has one");
    for n in 1_000..2_000 {
        let peer = format!("{}:4790", address(n));
        peers.observe(&[session(1, &peer, 100, 400, 0)], n as u64);
        assert!(peers.peers.len() <= PEERS_MAX);
    }
    assert!((0..PEERS_MAX / 2).all(|n| peers.peers.contains_key(&address(n))));
    assert!(peers.peers.contains_key(&address(1_999)));
}
