"""What every slot of a native vector keeps account of, in open loop and in closed loop."""

# columns of Slots.book
EPISODE, PLAYED, OVER, ROWS, DECISIONS, INVALID, TOKENS, DONE, DECISION, UNASKED = range(10)
"""EPISODE: which of the pool; PLAYED: episodes begun; OVER: 1 = the episode has ended; ROWS: of the observation that
may not be zero. Of this episode: DECISIONS taken, INVALID ones among them, TOKENS computed again, DONE: sessions that
ended, UNASKED: blocks evicted without being asked. DECISION: which kind is wanted, 0 = none."""
BOOK = 10
# autoreset
NEXT_STEP, SAME_STEP, BY_HAND = range(3)
# Slots.rules
MODE, MAX_DECISIONS = range(2)
"""MODE: of autoreset; MAX_DECISIONS: an episode is cut after so many, 0 = never."""
RULES = 2
# columns of Slots.costs
LOG_TCT, RECOMPUTED_TOKENS, GAP_TOKENS, SESSION_S = range(4)
"""LOG_TCT: sum of log(completion time, s) over the sessions that ended; RECOMPUTED_TOKENS: computed again; GAP_TOKENS:
by which the largest service gap grew; SESSION_S: seconds that sessions lived, summed over them."""
COSTS = 4
# what a step does with a slot
STEP, BEGIN, LEAVE, SHOW = range(4)
"""STEP: take the action; BEGIN: the next episode; LEAVE: nothing; SHOW: write anew what it shows."""
