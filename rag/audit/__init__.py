"""Whether the index is what a sync of the table would make, and how it becomes that again.

Knows the table, the index and how it is mirrored. `verifying` asks, of the rows (`checks`) and of
the rest (`probes`), and believes nothing but the table; `mending` prepares the repair.
"""

from rag.audit.mending import mend
from rag.audit.verifying import Problem, Verdict, state_of, verify

__all__ = ["Problem", "Verdict", "mend", "state_of", "verify"]
