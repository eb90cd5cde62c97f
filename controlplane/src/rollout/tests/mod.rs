//! Rollouts driven by injected figures: good, each criterion broken in turn, missing, flapping, leaders that change.

mod kit;
mod steps;

use std::collections::BTreeSet;

use kit::{Bench, FEATURE, NODES, migration, plan, session};

use super::RolloutError;
use super::criteria::{Criterion, Standing};
use super::decide::{Action, Part, Verdict};
use super::sample::{Sample, Side};
use super::state::Stage;

/// The recorded decisions that a leader made, the oldest first.
fn verdicts(bench: &Bench) -> Vec<Verdict> {
    let mut all = bench.leaders[0].decisions(&bench.id).unwrap();
    all.reverse();
    all.into_iter()
        .filter_map(|decided| serde_json::from_value(decided.decision).ok())
        .collect()
}

fn actions(bench: &Bench) -> Vec<Action> {
    let all = verdicts(bench).into_iter().map(|it| it.action);
    all.filter(|action| *action != Action::Hold).collect()
}

#[tokio::test]
async fn a_good_one_goes_to_the_end_and_every_step_is_recorded() {
    let bench = Bench::begun().await;
    for share in [20.0, 50.0, 100.0] {
        assert!((bench.view().percentage - share).abs() < 1e-9);
        bench.good();
        bench.pass(65).await;
    }
    bench.pass(30).await;
    let view = bench.view();
    assert_eq!(view.rollout.stage, Stage::Completed, "{}", view.rollout.why);
    assert_eq!(
        actions(&bench),
        [Action::Advance, Action::Advance, Action::Complete]
    );
    let state = bench.ledger.state();
    assert_eq!(state.flags[FEATURE].value.unwrap().share, 100_000);
    assert_eq!(state.steered_by(FEATURE), None);
    for verdict in verdicts(&bench)
        .iter()
        .filter(|it| it.action != Action::Hold)
    {
        assert_eq!(verdict.judgements.len(), Criterion::ALL.len());
        for judgement in &verdict.judgements {
            assert_eq!(judgement.standing, Standing::Good);
            assert!(
                judgement.value.is_some() && judgement.samples >= 40 && !judgement.query.is_empty()
            );
            let compared = judgement.query.contains("v1");
            assert_eq!(judgement.against.is_some(), compared, "{judgement:?}");
        }
    }
    // Nothing more happens.
    let version = bench.view().version;
    bench.good();
    bench.pass(10).await;
    assert_eq!(bench.view().version, version);
}

#[tokio::test]
async fn no_phase_ends_before_its_time() {
    let bench = Bench::begun().await;
    bench.good();
    bench.pass(59).await;
    assert_eq!(bench.view().rollout.phase, 0);
    bench.pass(2).await;
    assert_eq!(bench.view().rollout.phase, 1);
}

/// Samples that break one criterion and leave the others alone as far as that can be.
fn spoil(criterion: Criterion, bench: &Bench) {
    let now = bench.now();
    let add = |count: usize, sample: Sample| bench.add(count, || sample.clone());
    let (far, near) = (
        migration(Side::V3, "internet", now),
        migration(Side::V3, "datacenter", now),
    );
    match criterion {
        Criterion::ErrorRate => add(
            2,
            Sample {
                ok: false,
                ..session(Side::V3, now)
            },
        ),
        Criterion::LatencyP95S => {
            // v1 is as slow, so that only the absolute limit is broken.
            for side in [Side::V1, Side::V3] {
                add(
                    200,
                    Sample {
                        downtime_ms: Some(150),
                        ..migration(side, "internet", now)
                    },
                );
            }
        }
        Criterion::LatencyP95OfV1 => add(
            200,
            Sample {
                downtime_ms: Some(70),
                ..far
            },
        ),
        Criterion::BytesSaved => add(
            200,
            Sample {
                wire_bytes: 1 << 29,
                ..far
            },
        ),
        Criterion::ThroughputOfV1 => add(
            200,
            Sample {
                total_ms: 1_150,
                ..near
            },
        ),
        Criterion::MemoryOfV1 => add(
            200,
            Sample {
                memory_bytes: Some(200 << 20),
                ..far
            },
        ),
        Criterion::LiveSuccess => add(1, Sample { ok: false, ..near }),
        Criterion::CrossSiteSuccess => add(1, Sample { ok: false, ..far }),
        Criterion::Harm => add(
            1,
            Sample {
                ok: true,
                harm: true,
                ..session(Side::V3, now)
            },
        ),
    }
}

#[tokio::test]
async fn each_broken_criterion_rolls_back_from_each_phase() {
    for criterion in Criterion::ALL {
        for phase in 0..3 {
            let bench = Bench::begun().await;
            for _ in 0..phase {
                bench.good();
                bench.pass(65).await;
            }
            assert_eq!(bench.view().rollout.phase, phase);
            bench.good();
            bench.pass(5).await;
            spoil(criterion, &bench);
            bench.pass(1).await;
            let view = bench.view();
            assert_eq!(
                view.rollout.stage,
                Stage::RolledBack,
                "{criterion} in {phase}: {}",
                view.rollout.why
            );
            let verdict = verdicts(&bench).pop().unwrap();
            assert_eq!((verdict.action, verdict.phase), (Action::RollBack, phase));
            let found = verdict
                .judgements
                .iter()
                .find(|it| it.criterion == criterion)
                .unwrap();
            assert!(found.standing >= Standing::Broken, "{found:?}");
            assert!(found.value.is_some());
            assert!(
                verdict.why.contains(&criterion.to_string()),
                "{}",
                verdict.why
            );
            // It stays so, whatever comes.
            bench.good();
            bench.pass(70).await;
            assert_eq!(bench.view().rollout.stage, Stage::RolledBack);
            assert_eq!(bench.ledger.state().flags[FEATURE].value.unwrap().share, 0);
        }
    }
}

#[tokio::test]
async fn critical_is_told_apart_and_needs_no_full_count() {
    let bench = Bench::begun().await;
    bench.add(20, || session(Side::V3, bench.now()));
    bench.pass(2).await;
    assert_eq!(
        bench.view().rollout.stage,
        Stage::Running,
        "0 of 20 says nothing yet"
    );
    bench.add(2, || Sample {
        ok: false,
        ..session(Side::V3, bench.now())
    });
    bench.pass(1).await;
    assert_eq!(bench.view().rollout.stage, Stage::RolledBack);
    let verdict = verdicts(&bench).pop().unwrap();
    assert!(
        verdict.why.starts_with("critical: error_rate"),
        "{}",
        verdict.why
    );
    let found = &verdict.judgements[0];
    assert!(
        found.low > Some(0.01),
        "even the near end lies beyond: {found:?}"
    );
}

#[tokio::test]
async fn missing_data_holds_for_ever() {
    for without in Criterion::ALL {
        let bench = Bench::begun().await;
        let now = bench.now();
        let lacks = |mut sample: Sample| {
            match without {
                Criterion::LatencyP95S | Criterion::LatencyP95OfV1 => sample.downtime_ms = None,
                Criterion::MemoryOfV1 => sample.memory_bytes = None,
                _ => {}
            }
            sample
        };
        let modes: &[&str] = match without {
            Criterion::BytesSaved | Criterion::CrossSiteSuccess => &["datacenter"],
            Criterion::ThroughputOfV1 => &["internet"],
            Criterion::LiveSuccess => &[],
            _ => &["internet", "datacenter"],
        };
        for mode in modes {
            bench.add(50, || lacks(migration(Side::V3, mode, now)));
        }
        if !matches!(without, Criterion::ErrorRate | Criterion::Harm) {
            bench.add(100, || session(Side::V3, now));
        }
        bench.pass(300).await;
        let view = bench.view();
        assert_eq!(
            (view.rollout.stage, view.rollout.phase),
            (Stage::Running, 0),
            "{without}"
        );
        assert!(
            view.rollout.why.contains(&without.to_string()),
            "{without}: {}",
            view.rollout.why
        );
        assert_eq!(actions(&bench), []);
        // One line says so, not one a second.
        assert!(verdicts(&bench).len() <= 2);
    }
}

#[tokio::test]
async fn other_kinds_of_work_are_no_comparison() {
    let bench = Bench::begun().await;
    let now = bench.now();
    let larger = |sample: Sample| Sample {
        bytes: sample.bytes * 64,
        wire_bytes: sample.wire_bytes * 64,
        ..sample
    };
    for mode in ["internet", "datacenter"] {
        bench.add(50, || larger(migration(Side::V3, mode, now)));
    }
    bench.add(100, || session(Side::V3, now));
    bench.pass(100).await;
    let why = bench.view().rollout.why;
    assert!(
        why.contains("throughput_of_v1") && why.contains("memory_of_v1"),
        "{why}"
    );
    assert_eq!(bench.view().rollout.phase, 0);
}

#[tokio::test]
async fn a_silent_node_of_the_share_holds_and_one_outside_does_not() {
    let inside = |share: u32| {
        NODES
            .into_iter()
            .filter(move |name| crate::flags::bucket::bucket(FEATURE, name) < share)
    };
    let first = inside(20_000).next().unwrap();
    let outside = NODES
        .into_iter()
        .find(|name| !inside(20_000).any(|it| it == *name))
        .unwrap();
    let bench = Bench::begun().await;
    bench.world.silent.lock().unwrap().insert(first.to_owned());
    // Twice as much, since a part of it is not told.
    bench.good();
    bench.good();
    bench.pass(100).await;
    let view = bench.view();
    assert_eq!(view.rollout.phase, 0);
    assert!(view.rollout.why.contains("silent"), "{}", view.rollout.why);
    *bench.world.silent.lock().unwrap() = BTreeSet::from([outside.to_owned()]);
    bench.pass(30).await;
    assert_eq!(bench.view().rollout.phase, 1);
}

#[tokio::test]
async fn a_node_that_does_not_follow_holds() {
    let bench = Bench::begun().await;
    let stuck: BTreeSet<String> = NODES.iter().map(|name| (*name).to_owned()).collect();
    *bench.world.stuck.lock().unwrap() = stuck;
    bench.good();
    bench.pass(100).await;
    assert!(
        bench.view().rollout.why.contains("not in v3 yet"),
        "{}",
        bench.view().rollout.why
    );
    assert_eq!(bench.view().rollout.phase, 0);
}

#[tokio::test]
async fn flapping_neither_advances_nor_rolls_back_and_a_break_while_flapping_does() {
    let bench = Bench::begun().await;
    bench.good();
    // Between 0.1 % and 0.5 % of the sessions fail, on and off.
    let many = 1_000;
    bench.add(many, || session(Side::V3, bench.now()));
    let failed = |bench: &Bench, count: usize| {
        let mut samples = bench.world.samples.lock().unwrap();
        let mut left = count;
        for sample in samples
            .iter_mut()
            .filter(|it| it.work == super::sample::Work::Session)
        {
            sample.ok = left == 0;
            left = left.saturating_sub(1);
        }
    };
    for turn in 0..30 {
        failed(&bench, if turn % 2 == 0 { 0 } else { 4 });
        // Good for half of the time to settle.
        bench.pass(10).await;
    }
    let view = bench.view();
    assert_eq!(
        (view.rollout.stage, view.rollout.phase),
        (Stage::Running, 0)
    );
    assert_eq!(actions(&bench), []);
    failed(&bench, 9);
    bench.pass(1).await;
    assert_eq!(bench.view().rollout.stage, Stage::RolledBack);
    // And one that settles goes on.
    let bench = Bench::begun().await;
    bench.good();
    failed(&bench, 0);
    bench.pass(85).await;
    assert_eq!(bench.view().rollout.phase, 1);
}

#[tokio::test]
async fn a_v1_only_node_stays_in_v1_and_is_shown_as_such() {
    let bench = Bench::begun().await;
    let old = NODES
        .into_iter()
        .min_by_key(|name| crate::flags::bucket::bucket(FEATURE, name))
        .unwrap();
    bench.world.v1_only.lock().unwrap().insert(old.to_owned());
    for _ in 0..3 {
        bench.good();
        // Its own work goes on, in v1.
        bench.add(5, || migration(Side::V1, "internet", bench.now()));
        bench.pass(65).await;
    }
    bench.pass(30).await;
    assert_eq!(
        bench.view().rollout.stage,
        Stage::Completed,
        "{}",
        bench.view().rollout.why
    );
    let shown = bench.leaders[0]
        .get(&bench.id)
        .await
        .unwrap()
        .nodes
        .unwrap();
    for node in shown {
        let expected = if node.node == old {
            (Part::V1Only, Some(Side::V1))
        } else {
            (Part::InShare, Some(Side::V3))
        };
        assert_eq!((node.part, node.version), expected, "{}", node.node);
    }
}

#[tokio::test]
async fn plans_that_cannot_be_are_refused_with_a_reason() {
    let bench = Bench::new();
    let spoilt = |json: serde_json::Value| {
        let mut plan = serde_json::to_value(plan()).unwrap();
        plan.as_object_mut()
            .unwrap()
            .extend(json.as_object().unwrap().clone());
        serde_json::from_value::<super::Plan>(plan)
    };
    for (json, word) in [
        (serde_json::json!({"feature": "dwcp_v3_x"}), "no flag"),
        (
            serde_json::json!({"feature": "dwcp_v3_pba"}),
            "not exist in v3",
        ),
        (serde_json::json!({"phases": []}), "phases"),
        (
            serde_json::json!({"phases": [{"percentage": 50}, {"percentage": 50}]}),
            "larger",
        ),
        (serde_json::json!({"phases": [{"percentage": 0}]}), "larger"),
        (
            serde_json::json!({"phases": [{"percentage": 50, "min_samples": 0}]}),
            "min_samples",
        ),
        (
            serde_json::json!({"phases": [{"percentage": 0.001}]}),
            "first joins above",
        ),
        (serde_json::json!({"criteria": {}}), "criteria"),
        (
            serde_json::json!({"criteria": {"error_rate": {"target": 0.5, "rolls_back": 0.1}}}),
            "error_rate",
        ),
        (
            serde_json::json!({"criteria": {"bytes_saved": {"target": 0.5, "rolls_back": 0.7}}}),
            "bytes_saved",
        ),
    ] {
        let refused = bench.leaders[0]
            .create(spoilt(json).unwrap(), "a")
            .await
            .unwrap_err();
        assert!(matches!(refused, RolloutError::Plan(_)), "{refused}");
        assert!(refused.to_string().contains(word), "{refused}");
    }
    assert!(
        spoilt(serde_json::json!({"criteria": {"luck": {"target": 1, "rolls_back": 1}}})).is_err()
    );
    assert!(spoilt(serde_json::json!({"more": 1})).is_err());
    assert!(bench.leaders[0].list().is_empty());
}
