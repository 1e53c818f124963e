"""What `specdec bench` prints about itself; settings and their defaults are read where they are defined."""

from __future__ import annotations

import dataclasses
import textwrap

from specdec.experiments.bench import accepted, curve, machine, retrieval, rules, skip
from specdec.experiments.bench.op_runs import OPS

INDENT = " " * 6


def defaults(kind: type) -> str:
    """A dataclass's settings as name=default, in lines."""
    named = [f"{field.name}={field.default}" for field in dataclasses.fields(kind)]
    return textwrap.fill(" ".join(named), 110, initial_indent=INDENT, subsequent_indent=INDENT)


USAGE = f"""specdec bench: what kernels, operations, steps, drafters and rules cost and accept, on this machine

name=value, with the defaults below; after `=` nothing means none.

  specdec bench kernels     tree attention against its rivals: right first, then timed
  specdec bench ops         the small operations of a step:
{textwrap.indent(textwrap.fill(", ".join(OPS), 90), " " * 28)}
  specdec bench step        steps of the loop on a random model, 8B on a GPU, against what they must read and compute:
                            chains, greedy, no draft cost
      these three: device=cuda where there is one, else cpu; grid=small there, cpu here, or full; minutes=60 at most
      (run it again to go on); seconds=0.5 of timing a cell; again=false, true begins anew;
      output=outputs/bench/PART_DEVICE.json
  specdec bench curve       a step's cost by its nodes, for seconds=; with a drafter also what a level of drafts costs
                            and how often each rank is right: for tree=sequoia, drafter=adaptive
{defaults(curve.Settings)}
  specdec bench machine     memory bandwidth and FLOP/s, square and skinny, in the target's dtype and float32; for
                            specdec run machine=FILE, which tells what share of them a method reaches
{defaults(machine.Settings)}
  specdec bench retrieval   what a lookup of drafter=retrieval costs; with packages=NAME,NAME also in a datastore that
                            is made of their texts on the spot
{defaults(retrieval.Settings)}
  specdec bench skip        which layers drafter=early_exit should leave out; layers=0 is half of them
{defaults(skip.Settings)}
  specdec bench rules       what every acceptance rule costs, over a verify pass of a 1B model, for seconds= at every
                            vocab and batch
{defaults(rules.Settings)}
  specdec bench accepted    what block and traversal accept of the very drafts that rejection judges
{defaults(accepted.Settings)}
  specdec bench table FILE README   write a CPU's result into a README, between its markers [gpu=FILE]

The decoding loop against transformers' own: python benchmarks/loop.py, in a checkout.
"""
