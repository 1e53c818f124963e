"""A whole drafter: after every token it expects what followed that token the last time."""

from specdec.core import DraftNeeds
from specdec.tree.token_tree import TokenTree


class Bigram:
    """Chains of `length` tokens, each the latest successor of the one before it in this text."""

    def __init__(self, length: int = 4):
        self.length = length
        self.needs = DraftNeeds(max_nodes=length + 1)

    def open(self, capacity, max_length, device):
        return {"device": device, "successors": {}, "last": {}}  # everything of a request lives here

    def start(self, state, slots, prompts, prefill):
        for slot, prompt in zip(slots, prompts):
            state["successors"][slot] = dict(zip(prompt, prompt[1:]))
            state["last"][slot] = prompt[-1] if prompt else None

    def propose(self, state, roots, noise):
        paths = []
        for slot, root in enumerate(roots.tolist()):
            path = []
            if root >= 0:  # -1 is an empty slot
                follows = state["successors"][slot]
                follows[state["last"][slot]], state["last"][slot] = root, root
                while len(path) < self.length and (token := (path or [root])[-1]) in follows:
                    path.append(follows[token])
            paths.append([path])
        return TokenTree.from_paths(roots.tolist(), paths, device=state["device"])

    def observe(self, state, tree, verdict, output):
        for slot, (new, count) in enumerate(zip(verdict.emitted(tree).tolist(), verdict.num_accepted.tolist())):
            for token in new[: max(count - 1, 0)]:  # the last one is the next root: propose sees it
                state["successors"][slot][state["last"][slot]] = token
                state["last"][slot] = token
