use super::*;

const BATCH: usize = 256 * 1024;
static RAW: [u8; BATCH] = [7; BATCH];

/// True speed and share left of a method on the data at hand.
fn truth(choice: Choice) -> (f64, f64) {
    match (choice.method, choice.level) {
        (Method::Passthrough, _) => (f64::INFINITY, 1.0),
        (Method::Stored, _) => (8e9, 1.0),
        (Method::Lz4, _) => (0.6e9, 0.5),
        (Method::Zstd, 1) => (0.35e9, 0.35),
        (Method::Zstd, 3) => (0.2e9, 0.30),
        _ => (0.04e9, 0.27),
    }
}

const CLASSED: Classed = Classed {
    clear_bytes: BATCH * 9 / 10,
    kind: Kind::LEAST,
    classify_s: BATCH as f64 / 3e9,
};

fn one(chooser: &mut Chooser, hint: &EncodeHint, share: f64) -> Choice {
    let opened = chooser.open(hint, &RAW, true);
    if opened.method == Method::Passthrough {
        return opened;
    }
    let choice = chooser.choose(opened, hint, BATCH, &CLASSED);
    let (speed, ratio) = truth(choice);
    let clear = CLASSED.clear_bytes as f64;
    let left = (clear * (ratio * share).min(1.0)) as usize;
    chooser.observe(choice, &CLASSED, left, clear / speed);
    choice
}

fn run(chooser: &mut Chooser, hint: &EncodeHint, batches: usize) -> Vec<Choice> {
    (0..batches).map(|_| one(chooser, hint, 1.0)).collect()
}

fn hint(link_bytes_per_s: u64) -> EncodeHint {
    EncodeHint {
        link_bytes_per_s: Some(link_bytes_per_s),
        accepts_raw_as_is: true,
        ..EncodeHint::default()
    }
}

fn most_used(choices: &[Choice]) -> (Method, i32) {
    let count = |of: &Choice| {
        choices
            .iter()
            .filter(|c| (c.method, c.level) == (of.method, of.level))
            .count()
    };
    let most = choices.iter().max_by_key(|choice| count(choice)).unwrap();
    (most.method, most.level)
}

/// What all batches take when encoding and wire go on at once.
fn total_s(choices: &[Choice], link: f64) -> f64 {
    let (mut encode, mut wire) = (0.0, 0.0);
    for choice in choices {
        let (speed, ratio) = truth(*choice);
        let clear = CLASSED.clear_bytes as f64;
        if choice.method == Method::Passthrough {
            wire += BATCH as f64 / link;
        } else {
            encode += clear / speed + CLASSED.classify_s;
            wire += clear * ratio / link;
        }
    }
    f64::max(encode, wire)
}

#[test]
fn on_every_link_about_as_fast_as_the_best_method_and_never_much_slower() {
    for link in [2e6, 8e6, 20e6, 60e6, 100e6, 200e6, 400e6, 1.6e9, 6e9, 20e9] {
        let hint = hint(link as u64);
        let mut chooser = Chooser::new(1, 6);
        run(&mut chooser, &hint, 200);
        let choices = run(&mut chooser, &hint, 1_000);
        let fixed = [
            (Method::Passthrough, 0),
            (Method::Stored, 0),
            (Method::Lz4, 0),
            (Method::Zstd, 1),
            (Method::Zstd, 3),
            (Method::Zstd, 6),
        ];
        let best = fixed.map(|(method, level)| {
            let choice = Choice {
                method,
                level,
                reason: ChoiceReason::Soonest,
            };
            total_s(&vec![choice; choices.len()], link)
        });
        let best = best.into_iter().fold(f64::INFINITY, f64::min);
        let own = total_s(&choices, link);
        assert!(
            own <= best * 1.02,
            "{link} bytes/s: {own} s, the best alone {best} s"
        );
    }
}

#[test]
fn follows_a_link_that_changes() {
    let mut chooser = Chooser::new(1, 3);
    run(&mut chooser, &hint(20_000_000), 300);
    let choices = run(&mut chooser, &hint(20_000_000_000), 100);
    assert_eq!(most_used(&choices[60..]), (Method::Passthrough, 0));
    let choices = run(&mut chooser, &hint(20_000_000), 100);
    assert_eq!(most_used(&choices[60..]).0, Method::Zstd);
}

#[test]
fn a_waiting_guest_sees_no_probe_and_the_sum_counts() {
    // Pipelined, compression hides behind the wire; one batch alone pays for both.
    let link = hint(1_000_000_000);
    let critical = EncodeHint {
        latency_critical: true,
        ..link
    };
    let mut chooser = Chooser::new(1, 3);
    run(&mut chooser, &link, 300);
    let choices = run(&mut chooser, &critical, 300);
    assert!(choices.iter().all(|c| c.reason != ChoiceReason::Probe));
    assert_eq!(most_used(&choices), (Method::Passthrough, 0));
    // Behind a backlog the wire is busy anyway, and fewer bytes win.
    let behind = EncodeHint {
        backlog_bytes: 4 << 20,
        ..critical
    };
    assert_eq!(most_used(&run(&mut chooser, &behind, 50)).0, Method::Zstd);
}

#[test]
fn light_effort_bounds_the_level_at_once_and_for_probes_too() {
    let thin = hint(5_000_000);
    let light = EncodeHint {
        effort: Effort::Light,
        ..thin
    };
    let mut chooser = Chooser::new(1, 6);
    assert_eq!(most_used(&run(&mut chooser, &thin, 300)).1, 6);
    let choices = run(&mut chooser, &light, 2_000);
    assert!(choices.iter().all(|choice| choice.level <= LIGHT_LEVEL_MAX));
    assert_eq!(most_used(&run(&mut chooser, &thin, 300)).1, 6);
}

#[test]
fn senders_that_share_a_core_choose_what_all_of_them_have_time_for() {
    // Alone it has time for the strongest level, of which four would need more than the core.
    let link = 5e6;
    let alone = hint(link as u64);
    let crowded = EncodeHint {
        crowd: 4.0,
        ..alone
    };
    let mut levels = Vec::new();
    for hint in [alone, crowded] {
        let mut chooser = Chooser::new(1, 12);
        run(&mut chooser, &hint, 300);
        levels.push(most_used(&run(&mut chooser, &hint, 300)));
    }
    let needs_s = |(method, level)| {
        let reason = ChoiceReason::Soonest;
        let (speed, ratio) = truth(Choice {
            method,
            level,
            reason,
        });
        link / ratio / speed
    };
    assert!(levels[1].1 < levels[0].1, "{levels:?}");
    assert!(needs_s(levels[0]) * 4.0 > 1.0 && needs_s(levels[1]) * 4.0 <= 1.0);
}

#[test]
fn probes_are_few() {
    let mut chooser = Chooser::new(1, 12);
    let choices = run(&mut chooser, &hint(30_000_000), 2_000);
    let probes = choices
        .iter()
        .filter(|c| c.reason == ChoiceReason::Probe)
        .count();
    assert!(
        (5..=2_000 / PROBE_SPACING as usize).contains(&probes),
        "{probes} probes"
    );
}

#[test]
fn learns_that_the_data_changed() {
    let mut chooser = Chooser::new(1, 3);
    let link = hint(150_000_000);
    assert_eq!(most_used(&run(&mut chooser, &link, 300)).0, Method::Zstd);
    // Now nothing compresses.
    let choices: Vec<Choice> = (0..600).map(|_| one(&mut chooser, &link, 100.0)).collect();
    let stored = |choice: &Choice| matches!(choice.method, Method::Passthrough | Method::Stored);
    let of_last = choices[300..]
        .iter()
        .filter(|choice| stored(choice))
        .count();
    assert!(of_last > 270, "{of_last} of 300");
}

#[test]
fn the_unknown_and_the_small() {
    let unknown = EncodeHint::default();
    let opened = Chooser::new(1, 3).open(&unknown, &RAW, true);
    assert_eq!(
        (opened.method, opened.reason),
        (Method::Lz4, ChoiceReason::LinkUnknown)
    );
    let aggressive = EncodeHint {
        effort: Effort::Aggressive,
        ..unknown
    };
    let opened = Chooser::new(1, 3).open(&aggressive, &RAW, true);
    assert_eq!((opened.method, opened.level), (Method::Zstd, 1));
    let small = Chooser::new(1, 3).open(&hint(1), &RAW[..40], false);
    assert_eq!(
        (small.method, small.reason),
        (Method::Passthrough, ChoiceReason::SmallBatch)
    );
}
