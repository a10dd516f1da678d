// Greedy or coupled acceptance: drafts stand up to the first that is not the target's choice.
//
// A plan row's choices lie one after the other, one for each draft and one more. chosen, drafts: [selected rows]; drafts[i] is compared
// with chosen[i], the last of each plan row with nothing. starts: [plan_rows + 1]. accepted, noncausal: [plan_rows]; the row emits
// chosen[start ..= start + accepted]; accepted is NO_TOKEN where one of those is. noncausal counts drafts behind the first miss too.
// Grid (ceil(plan_rows / 128)), block 128: a thread has a plan row.
#include <choice.cuh>

extern "C" __global__ void __launch_bounds__(128)
    accept(const u32 *chosen, const u32 *drafts, const u32 *starts, u32 *accepted, u32 *noncausal, u32 plan_rows) {
    wait_for_previous();
    let_next_start();
    u32 row = blockIdx.x * 128 + threadIdx.x;
    if (row >= plan_rows) {
        return;
    }
    u32 start = starts[row], end = starts[row + 1], stand = 0, equal = 0;
    bool failed = start == end, missed = false;
    for (u32 i = start; i < end; i++) {
        bool bad = chosen[i] == NO_TOKEN;
        failed |= bad && !missed;
        bool same = i + 1 < end && !bad && chosen[i] == drafts[i];
        equal += same;
        missed |= !same;
        stand += !missed;
    }
    accepted[row] = failed ? NO_TOKEN : stand;
    noncausal[row] = equal;
}
