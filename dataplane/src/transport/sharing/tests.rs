//! Sharing over links that are computed: what the network gives each session by itself, and what each wants.

use super::{CLAIMS_MAX, Claim, LOOK_EVERY_NS, Sharing};

/// A session of the model.
#[derive(Clone, Copy)]
struct Model {
    link: u64,
    /// How much the network favours it.
    favour: u64,
    /// What holds it up otherwise, bytes a second.
    own_limit: u64,
    begins_look: u64,
    sent_bytes: u64,
    waited_ns: u64,
    /// Its rate now, and what it may send.
    speed: u64,
    rate: u64,
}

fn model(favour: u64) -> Model {
    Model {
        link: 7,
        favour,
        own_limit: u64::MAX,
        begins_look: 0,
        sent_bytes: 0,
        waited_ns: 0,
        speed: 0,
        rate: 0,
    }
}

/// Lets the network divide `line` by favour, under the limits, and speeds grow by half a look at most.
fn pass(models: &mut [Model], line: u64, looks: u64) {
    let mut sharing = Sharing::default();
    let mut rates = [0; CLAIMS_MAX];
    for look in 1..=looks {
        let on: Vec<usize> = (0..models.len())
            .filter(|&at| models[at].begins_look <= look)
            .collect();
        let wish = |one: &Model| {
            let grown = (one.speed + one.speed / 2).max(line / 64);
            let may = if one.rate == 0 { u64::MAX } else { one.rate };
            grown.min(may).min(one.own_limit)
        };
        // Water-filling by favour.
        let mut given = vec![0; models.len()];
        let mut open = on.clone();
        let mut left = line;
        while !open.is_empty() && left > 1_000 {
            let favours: u64 = open.iter().map(|&at| models[at].favour).sum();
            let round = left;
            open.retain(|&at| {
                let part = round / favours * models[at].favour;
                let take = part.min(wish(&models[at]) - given[at]);
                given[at] += take;
                left -= take.min(left);
                given[at] < wish(&models[at])
            });
            if round == left {
                break;
            }
        }
        let mut claims = [None; CLAIMS_MAX];
        for &at in &on {
            let one = &mut models[at];
            one.speed = given[at];
            one.sent_bytes += one.speed / 10;
            // What is held up by something else has nothing that waits.
            one.waited_ns += if one.own_limit == u64::MAX {
                LOOK_EVERY_NS
            } else {
                0
            };
            claims[at] = Some(Claim {
                link: one.link,
                sent_bytes: one.sent_bytes,
                waited_ns: one.waited_ns,
            });
        }
        sharing.look(look * LOOK_EVERY_NS, &claims, &mut rates);
        for (one, rate) in models.iter_mut().zip(rates) {
            one.rate = rate;
        }
    }
}

fn sent(models: &[Model]) -> Vec<u64> {
    models.iter().map(|one| one.sent_bytes).collect()
}

#[test]
fn whatever_the_network_favours_each_gets_an_even_part_and_the_line_stays_full() {
    const LINE: u64 = 25_000_000;
    for favours in [[1, 1, 1, 1], [1, 2, 3, 4], [1, 1, 1, 8], [1, 8, 8, 8]] {
        let mut models = favours.map(model);
        pass(&mut models, LINE, 150);
        let sent = sent(&models);
        let all: u64 = sent.iter().sum();
        for bytes in &sent {
            let off = (bytes * 4).abs_diff(all) * 100 / all;
            assert!(off <= 10, "{favours:?}: {sent:?}");
        }
        assert!(all * 100 >= LINE * 15 * 90, "{favours:?}: {all}");
    }
}

#[test]
fn a_session_that_comes_later_has_no_claim_on_what_was_before() {
    let mut models = [model(1), model(1)];
    models[1].begins_look = 100;
    pass(&mut models, 20_000_000, 200);
    let [first, second] = [models[0].sent_bytes, models[1].sent_bytes];
    // Ten seconds alone, then an even part.
    assert!(
        (280_000_000..=310_000_000).contains(&first),
        "{first} {second}"
    );
    assert!(
        (80_000_000..=105_000_000).contains(&second),
        "{first} {second}"
    );
}

#[test]
fn who_wants_little_costs_the_others_nothing() {
    let mut models = [model(1), model(1), model(1)];
    models[2].own_limit = 1_000_000;
    pass(&mut models, 20_000_000, 200);
    let all: u64 = sent(&models).iter().sum();
    assert!(all * 100 >= 20_000_000 * 20 * 93, "{:?}", sent(&models));
    let off = models[0].sent_bytes.abs_diff(models[1].sent_bytes);
    assert!(off * 10 <= models[0].sent_bytes);
}

/// One waits all the time and still gets no more, as over lanes of which most are dead.
#[test]
fn who_waits_for_something_else_holds_nobody_for_long() {
    let mut models = [model(1), model(1)];
    models[1].own_limit = 1_000_000;
    let mut sharing = Sharing::default();
    let mut rates = [0; CLAIMS_MAX];
    let mut claims = [None; CLAIMS_MAX];
    for look in 1..=600_u64 {
        for (one, rate) in models.iter_mut().zip(rates) {
            let may = if rate == 0 { 19_000_000 } else { rate };
            one.sent_bytes += may.min(one.own_limit) / 10;
        }
        for (claim, one) in claims.iter_mut().zip(&models) {
            *claim = Some(Claim {
                link: 7,
                sent_bytes: one.sent_bytes,
                waited_ns: look * LOOK_EVERY_NS,
            });
        }
        sharing.look(look * LOOK_EVERY_NS, &claims, &mut rates);
    }
    assert!(
        models[0].sent_bytes >= 19_000_000 * 60 / 100 * 65,
        "{}",
        models[0].sent_bytes
    );
}

#[test]
fn links_are_told_apart_and_one_session_alone_is_never_slowed() {
    let mut models = [model(1), model(9), model(1)];
    models[2].link = 8;
    pass(&mut models, 30_000_000, 100);
    assert_eq!(models[2].rate, 0);
    let mut alone = [model(1)];
    pass(&mut alone, 30_000_000, 100);
    assert_eq!(alone[0].rate, 0);
    assert!(alone[0].sent_bytes >= 270_000_000);
}
