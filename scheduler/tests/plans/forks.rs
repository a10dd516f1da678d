//! Several samples of one prompt: the first is computed, the others continue from its KV.

use pagedraft_block_manager::{BlockCopy, BlockId, GroupId};
use pagedraft_scheduler::fake::Script;
use pagedraft_scheduler::{RequestKey, RequestSpec, SchedulerConfig};

use crate::rig::Rig;

fn config() -> SchedulerConfig {
    SchedulerConfig { num_blocks: 64, max_num_batched_tokens: 32, ..SchedulerConfig::default() }
}

fn sample(rig: &mut Rig, prompt: u32, fork_of: Option<RequestKey>) -> RequestKey {
    let seed = rig.output.len() as u64;
    let spec = RequestSpec { fork_of, ..RequestSpec::new((0..prompt).collect(), 20) };
    let script = Script { seed, ..Script::default() };
    rig.submit(spec, script)
}

#[test]
fn samples_wait_for_the_prompt_and_then_compute_its_last_token_alone() {
    let mut rig = Rig::new(config());
    let first = sample(&mut rig, 40, None);
    let others = [sample(&mut rig, 40, Some(first)), sample(&mut rig, 40, Some(first))];
    assert_eq!(rig.step(), [(first, 0, 32)]);
    assert_eq!(rig.step(), [(first, 32, 40)], "the budget has room, the prompt no KV yet");
    assert_eq!(rig.step(), [(first, 40, 41), (others[0], 39, 40), (others[1], 39, 40)]);
    assert!(rig.plan.rows.iter().all(|row| row.samples));
    let copies: Vec<_> =
        [3, 4].map(|dst| BlockCopy { group: GroupId(0), src: BlockId(2), dst: BlockId(dst) }).into();
    assert_eq!(rig.plan.copies, copies);
    assert_eq!(rig.table(others[1]), [0, 1, 4]);
    assert_eq!((rig.cached(first), rig.cached(others[0])), (0, 39));
    rig.drain();
    for (seed, key) in [first, others[0], others[1]].iter().enumerate() {
        let script = Script { seed: seed as u64, ..Script::default() };
        let expected: Vec<u32> = (40..60).map(|p| script.token(p)).collect();
        assert_eq!(rig.output[key], expected);
    }
    assert_eq!(rig.scheduler.stats().pool.used, 0);
}

#[test]
fn nothing_is_copied_when_the_cut_is_between_two_blocks() {
    let mut rig = Rig::new(config());
    let first = sample(&mut rig, 17, None);
    let other = sample(&mut rig, 17, Some(first));
    rig.step();
    rig.step();
    assert!(rig.plan.copies.is_empty());
    assert_eq!((rig.table(first)[0], rig.table(other)[0]), (0, 0));
    assert_ne!(rig.table(first)[1], rig.table(other)[1]);
}

#[test]
fn requests_behind_a_waiting_sample_go_first() {
    let mut rig = Rig::new(config());
    let first = sample(&mut rig, 30, None);
    sample(&mut rig, 30, Some(first));
    let behind = rig.request(2, 5);
    assert_eq!(rig.step(), [(first, 0, 30), (behind, 0, 2)]);
}

#[test]
fn a_sample_of_a_request_that_is_gone_is_a_request_like_any_other() {
    let mut rig = Rig::new(config());
    let first = sample(&mut rig, 40, None);
    let other = sample(&mut rig, 40, Some(first));
    rig.step();
    rig.step();
    rig.scheduler.abort(first).unwrap();
    assert_eq!(rig.step(), [(other, 32, 40)], "the prefix cache has the rest");
    let late = sample(&mut rig, 40, Some(first));
    assert_eq!(rig.step(), [(other, 40, 41), (late, 32, 40)]);
}

#[test]
fn a_sample_of_a_sample_waits_for_the_copy() {
    let mut rig = Rig::new(config());
    let first = sample(&mut rig, 20, None);
    let second = sample(&mut rig, 20, Some(first));
    let third = sample(&mut rig, 20, Some(second));
    rig.step();
    assert_eq!(rig.step(), [(first, 20, 21), (second, 19, 20)]);
    assert_eq!(rig.step()[2], (third, 19, 20));
    assert_eq!(rig.plan.copies[0].src, BlockId(rig.table(second)[1]));
}

#[test]
fn samples_survive_the_preemption_of_the_first_and_their_own() {
    for num_blocks in 3..12 {
        let mut rig = Rig::new(SchedulerConfig { num_blocks, ..config() });
        let first = sample(&mut rig, 25, None);
        let keys = [first, sample(&mut rig, 25, Some(first)), sample(&mut rig, 25, Some(first))];
        rig.drain();
        for key in keys {
            assert_eq!(rig.output[&key].len(), 20, "with {num_blocks} blocks");
        }
        assert_eq!(rig.scheduler.stats().pool.used, 0);
    }
}
