//! Who may make a step: operators, leaders that change in the middle of one, the kill switch.

use std::sync::atomic::Ordering;

use dwcp_consensus::Command;

use super::kit::{Bench, FEATURE, plan};
use super::{actions, spoil, verdicts};
use crate::rollout::criteria::Criterion;
use crate::rollout::decide::Action;
use crate::rollout::state::Stage;
use crate::rollout::{Order, RolloutError};

#[tokio::test]
async fn an_operator_pauses_resumes_and_aborts() {
    let bench = Bench::begun().await;
    let leader = &bench.leaders[1];
    bench.good();
    leader.order(&bench.id, Order::Pause, "bob").await.unwrap();
    bench.pass(200).await;
    assert_eq!(
        (bench.view().rollout.stage, bench.view().rollout.phase),
        (Stage::Paused, 0)
    );
    assert!(matches!(
        leader.order(&bench.id, Order::Pause, "bob").await,
        Err(RolloutError::Stage(_))
    ));
    leader.order(&bench.id, Order::Resume, "bob").await.unwrap();
    bench.pass(3).await;
    assert_eq!(bench.view().rollout.phase, 1);
    leader
        .order(&bench.id, Order::Abort, "carol")
        .await
        .unwrap();
    bench.whole();
    assert_eq!(bench.view().rollout.stage, Stage::Aborted);
    assert_eq!(bench.ledger.state().flags[FEATURE].value.unwrap().share, 0);
    assert!(matches!(
        leader.order(&bench.id, Order::Resume, "bob").await,
        Err(RolloutError::Stage(_))
    ));
    let by: Vec<String> = leader
        .decisions(&bench.id)
        .unwrap()
        .into_iter()
        .map(|it| it.by)
        .collect();
    assert_eq!(
        (by[0].as_str(), by.last().unwrap().as_str()),
        ("carol", "alice")
    );
    assert!(matches!(
        leader.get("none").await,
        Err(RolloutError::Unknown(_))
    ));
}

#[tokio::test]
async fn a_paused_one_is_still_rolled_back() {
    let bench = Bench::begun().await;
    bench.good();
    bench.leaders[0]
        .order(&bench.id, Order::Pause, "bob")
        .await
        .unwrap();
    spoil(Criterion::Harm, &bench);
    bench.pass(1).await;
    assert_eq!(bench.view().rollout.stage, Stage::RolledBack);
}

#[tokio::test]
async fn the_kill_switch_holds_and_the_flag_is_nobody_elses() {
    let bench = Bench::begun().await;
    bench.good();
    let force = |on| Command::Force {
        on,
        seen: 9,
        at_unix_ms: 0,
        by: String::new(),
        throw: None,
    };
    bench.ledger.run(force(true)).unwrap();
    bench.pass(100).await;
    assert_eq!(bench.view().rollout.why, "the kill switch is on");
    bench.ledger.run(force(false)).unwrap();
    bench.pass(25).await;
    assert_eq!(bench.view().rollout.phase, 1);
    let set = Command::SetFlag {
        feature: FEATURE.to_owned(),
        value: dwcp_consensus::command::FlagValue::default(),
        at_unix_ms: 0,
        by: String::new(),
    };
    let refused = bench.ledger.run(set.clone()).unwrap_err().to_string();
    assert!(refused.contains("steered by rollout/"), "{refused}");
    let second = bench.leaders[0]
        .create(plan(), "bob")
        .await
        .unwrap_err()
        .to_string();
    assert!(second.contains("steered by"), "{second}");
    bench.leaders[0]
        .order(&bench.id, Order::Abort, "bob")
        .await
        .unwrap();
    bench.ledger.run(set).unwrap();
}

/// Brings a bench to where the next look makes the step.
async fn before(step: Action) -> Bench {
    let bench = Bench::begun().await;
    let phases = if step == Action::Complete { 2 } else { 0 };
    for _ in 0..phases {
        bench.good();
        bench.pass(60).await;
    }
    bench.good();
    bench
        .pass(if step == Action::RollBack { 5 } else { 59 })
        .await;
    if step == Action::RollBack {
        spoil(Criterion::Harm, &bench);
    }
    bench.now.fetch_add(2_000, Ordering::SeqCst);
    bench
}

fn stands(bench: &Bench) -> (Stage, usize) {
    let view = bench.view();
    (view.rollout.stage, view.rollout.phase)
}

#[tokio::test]
async fn a_leader_that_changes_in_the_middle_of_a_step_leaves_it_whole() {
    for (step, after) in [
        (Action::Advance, (Stage::Running, 1)),
        (Action::Complete, (Stage::Completed, 2)),
        (Action::RollBack, (Stage::RolledBack, 0)),
    ] {
        // It read, and is replaced before it decides; the next one makes the step.
        let bench = before(step).await;
        bench.world.hold.store(true, Ordering::SeqCst);
        let old = bench.leaders[0].clone();
        let late = tokio::spawn(async move { old.tick().await });
        bench.world.asked.notified().await;
        bench.hand_over(1);
        bench.leaders[1].tick().await.unwrap();
        assert_eq!(stands(&bench), after, "{step:?}");
        let version = bench.view().version;
        bench.world.go.notify_one();
        late.await.unwrap().unwrap();
        bench.whole();
        assert_eq!(
            bench.view().version,
            version,
            "the late one changed something"
        );
        assert_eq!(actions(&bench).iter().filter(|it| **it == step).count(), 1);
        let last = verdicts(&bench).pop().unwrap();
        assert_eq!(last.action, step);

        // It dies before its write leaves it.
        let bench = before(step).await;
        let stood = stands(&bench);
        bench.seats[0].dead.store(true, Ordering::SeqCst);
        bench.leaders[0].tick().await.unwrap();
        bench.whole();
        assert_eq!(stands(&bench), stood);
        bench.hand_over(1);
        bench.leaders[1].tick().await.unwrap();
        assert_eq!(stands(&bench), after, "{step:?}");

        // It dies before it hears that its write was agreed on.
        let bench = before(step).await;
        bench.seats[0].deaf.store(true, Ordering::SeqCst);
        bench.leaders[0].tick().await.unwrap();
        bench.hand_over(1);
        bench.leaders[1].tick().await.unwrap();
        bench.whole();
        assert_eq!(stands(&bench), after, "{step:?}");
        assert_eq!(actions(&bench).iter().filter(|it| **it == step).count(), 1);
    }
}

#[tokio::test]
async fn an_abort_between_reading_and_writing_stands() {
    let bench = before(Action::Advance).await;
    bench.world.hold.store(true, Ordering::SeqCst);
    let old = bench.leaders[0].clone();
    let late = tokio::spawn(async move { old.tick().await });
    bench.world.asked.notified().await;
    bench.leaders[1]
        .order(&bench.id, Order::Abort, "bob")
        .await
        .unwrap();
    bench.world.go.notify_one();
    late.await.unwrap().unwrap();
    bench.whole();
    assert_eq!(stands(&bench), (Stage::Aborted, 0));
}

#[tokio::test]
async fn who_does_not_lead_decides_nothing() {
    let bench = before(Action::Advance).await;
    bench.hand_over(1);
    bench.leaders[0].tick().await.unwrap();
    assert_eq!(stands(&bench), (Stage::Running, 0));
}
