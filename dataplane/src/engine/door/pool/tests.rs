use super::*;

const S: u64 = 1_000_000_000;
/// A round trip of the line below.
const RTT: u64 = S / 10;

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 4790))
}

fn peer(last: u8) -> Peer {
    Peer {
        address: address(last),
        target: None,
        node: Some(format!("node-{last}")),
    }
}

fn node(last: u8) -> NodeId {
    NodeId::of_name(&format!("node-{last}"))
}

fn pool(listed: &[u8]) -> Pool {
    Pool::new(PoolConfig {
        peers: listed.iter().map(|last| address(*last)).collect(),
        lanes: 4,
        ..PoolConfig::default()
    })
}

/// Dials all that is due, and every dial is a success. Says how many.
fn fill(pool: &mut Pool, next_id: &mut u64, now_ns: u64) -> usize {
    let mut count = 0;
    while let Some((to, _)) = pool.next_dial(now_ns) {
        let last = to.to_string().split(['.', ':']).nth(3).unwrap().parse();
        assert!(pool.made(to, *next_id, node(last.unwrap()), now_ns));
        *next_id += 1;
        count += 1;
    }
    count
}

const QUIET: Seen = Seen {
    window_packets: 10,
    is_busy: false,
    gains: true,
};

/// Looks at every connection in each round trip, of a kernel that doubles its window with each round. Gives the bytes
/// of padding that went out.
fn warm(pool: &mut Pool, from_ns: u64, rounds: u64) -> usize {
    let mut windows: HashMap<u64, u32> = HashMap::new();
    let mut bytes = 0;
    for round in 0..rounds {
        for id in pool.to_warm() {
            let window = windows.entry(id).or_insert(10);
            let seen = Seen {
                window_packets: *window,
                ..QUIET
            };
            let pieces = pool.padding(id, seen, from_ns + round * RTT);
            assert!(pieces <= WARM_PACKETS as usize);
            *window += pieces as u32;
            bytes += pieces * PAD_BYTES;
        }
    }
    bytes
}

#[test]
fn a_listed_peer_has_its_connections_and_another_once_a_session_went_there() {
    let (mut pool, mut id) = (pool(&[1]), 0);
    assert_eq!(fill(&mut pool, &mut id, S), 4);
    assert_eq!(fill(&mut pool, &mut id, 2 * S), 0);
    let session = SessionId([2; 16]);
    pool.begins(session, &peer(2));
    pool.came_up(session);
    assert_eq!(fill(&mut pool, &mut id, 3 * S), 0, "while it runs");
    pool.ends(session, 4 * S);
    assert_eq!(fill(&mut pool, &mut id, 4 * S), 4);
    assert_eq!(pool.ready(), 8);
    // Kept for so long after the last session, and the listed one for ever.
    assert!(pool.take_closed(603 * S).is_empty());
    let mut closed = pool.take_closed(605 * S);
    closed.sort_unstable();
    assert_eq!(closed, [4, 5, 6, 7]);
    assert_eq!(fill(&mut pool, &mut id, 606 * S), 0);
    assert!(pool.take_closed(100_000 * S).is_empty());
    // One that never had a lane teaches nothing.
    pool.begins(session, &peer(3));
    pool.ends(session, 700 * S);
    assert_eq!(fill(&mut pool, &mut id, 700 * S), 0);
}

#[test]
fn a_lane_is_given_one_to_its_node_once_and_a_warm_one_first() {
    let (mut pool, mut id) = (pool(&[1]), 0);
    fill(&mut pool, &mut id, S);
    assert_eq!(pool.take(address(1), Some(node(2))), None, "another node");
    assert_eq!(pool.take(address(2), None), None, "another peer");
    // The third became warm.
    let gained = Seen {
        window_packets: WARM_PACKETS,
        ..QUIET
    };
    assert_eq!(pool.padding(2, gained, S), 0);
    let taken: Vec<_> = (0..5)
        .map(|_| pool.take(address(1), Some(node(1))))
        .collect();
    assert_eq!(taken, [Some(2), Some(0), Some(1), Some(3), None]);
}

#[test]
fn padding_doubles_the_window_within_its_bounds_and_never_beside_a_session() {
    let (mut pool, mut id) = (pool(&[1]), 0);
    fill(&mut pool, &mut id, S);
    let session = SessionId([1; 16]);
    pool.begins(session, &peer(1));
    assert!(pool.to_warm().is_empty());
    pool.ends(session, S);
    // 10, 20, 40 and 80 pieces for each of four.
    assert_eq!(warm(&mut pool, S, 20), 4 * 150 * PAD_BYTES);
    assert!(pool.to_warm().is_empty());
    // A connection that is replaced again and again is not warmed each time.
    let mut more = 0;
    for round in 1..100 {
        for old in 0..id {
            pool.lost(old, S * 100 * round);
        }
        fill(&mut pool, &mut id, S * 100 * round + 99 * S);
        more += warm(&mut pool, S * 100 * round + 99 * S, 20);
    }
    let periods = 100 * 100 * S / PADDING_EVERY_NS + 1;
    assert!(more > 0 && more <= periods as usize * 4 * PADDING_OF_ONE_BYTES);
}

#[test]
fn a_window_that_does_not_grow_or_would_not_last_is_left_alone() {
    let (mut pool, mut id) = (pool(&[1]), 0);
    fill(&mut pool, &mut id, S);
    let near = Seen {
        gains: false,
        ..QUIET
    };
    assert_eq!(pool.padding(0, near, S), 0);
    assert!(!pool.to_warm().contains(&0));
    let busy = Seen {
        is_busy: true,
        ..QUIET
    };
    for round in 0..1_000 {
        assert_eq!(pool.padding(1, busy, S + round * RTT), 0);
    }
    let rounds = (0..1_000).filter(|round| pool.padding(1, QUIET, S + round * RTT) > 0);
    assert_eq!(rounds.count(), ROUNDS_MAX as usize);
    assert_eq!(pool.padding(99, QUIET, S), 0, "nobody's");
}

#[test]
fn who_does_not_answer_or_refuses_is_asked_ever_more_seldom() {
    let mut pool = pool(&[1]);
    let (mut asked, mut now_ns) = (0, S);
    while now_ns < 3_600 * S {
        while let Some((to, _)) = pool.next_dial(now_ns) {
            asked += 1;
            pool.failed(to, false, now_ns);
        }
        now_ns += S / 10;
    }
    assert!((50..300).contains(&asked), "{asked}");
    while pool.next_dial(now_ns).is_none() {
        now_ns += S;
    }
    pool.failed(address(1), true, now_ns);
    assert_eq!(pool.next_dial(now_ns + 59 * S), None);
    assert!(pool.next_dial(now_ns + 61 * S).is_some());
}

#[test]
fn a_dead_one_costs_its_neighbours_too_and_peers_are_bounded() {
    let (mut pool, mut id) = (pool(&[]), 0);
    for nth in 0..=255u8 {
        let session = SessionId([nth; 16]);
        pool.begins(session, &peer(nth));
        pool.came_up(session);
        pool.ends(session, S * (u64::from(nth) + 1));
        fill(&mut pool, &mut id, S * (u64::from(nth) + 1));
    }
    assert_eq!(pool.ready(), LEARNED_MAX * 4);
    assert_eq!(pool.take_closed(256 * S).len(), (256 - LEARNED_MAX) * 4);
    pool.distrust(address(255));
    assert_eq!(pool.take(address(255), None), None);
    assert_eq!(pool.take_closed(256 * S).len(), 4);
}

#[test]
fn a_pool_that_is_off_keeps_nothing() {
    let mut pool = Pool::new(PoolConfig {
        enabled: false,
        peers: vec![address(1)],
        ..PoolConfig::default()
    });
    let session = SessionId([2; 16]);
    pool.begins(session, &peer(2));
    pool.came_up(session);
    pool.ends(session, S);
    assert_eq!(pool.next_dial(2 * S), None);
}
