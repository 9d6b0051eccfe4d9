"""What runs inside Redis. Written for Redis 6.2: no functions, no EXPIRE GT."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the SHA-1 by which Redis knows it once it is loaded."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


#: KEYS: entities. ARGV: fence field, shared; then of each entity: time to live, fence, fields and
#: values as MessagePack. Returns how many were written. One HSET an entity: Redis checks its memory
#: before a command, so an entity is written whole or not at all. Fences are digits of one width:
#: their order as texts is that of the numbers, in any locale.
WRITE: Final = Script("""
local fence, shared = ARGV[1], ARGV[2] == '1'
local call, unpack = redis.call, cmsgpack.unpack
local at, written = 2, 0
for i = 1, #KEYS do
  local key, ttl, own = KEYS[i], ARGV[at + 1], ARGV[at + 2]
  local known = call('HGET', key, fence)
  if not known or known <= own then
    call('HSET', key, fence, own, unpack(ARGV[at + 3]))
    if not shared or call('PTTL', key) < tonumber(ttl) then call('PEXPIRE', key, ttl) end
    written = written + 1
  end
  at = at + 3
end
return written
""")

_RUN = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local function highest() return tonumber(redis.call('HGET', KEYS[1], 'lineage') or '0') end
"""

#: KEYS: the markers. ARGV: partition, token, wall clock in ms.
#: Returns the marker's text, the newest rebuild, the server's run.
OPEN: Final = Script(
    _RUN
    + """
local partition, token, now = ARGV[1], ARGV[2], tonumber(ARGV[3])
local known = redis.call('HGET', KEYS[1], partition)
if not known or redis.call('HGET', KEYS[1], 'token:' .. partition) ~= token then
  local lineage = string.format('%.0f', math.max(highest() + 1, now))
  known = lineage .. ':0:0:' .. ARGV[3] .. ':0'
  redis.call('HSET', KEYS[1], 'lineage', lineage, 'token:' .. partition, token, partition, known)
end
return {known, redis.call('HGET', KEYS[1], 'rebuild') or '0', run}
"""
)

#: KEYS: the markers. ARGV: partition, lineage, the server's run, the marker's text.
#: Returns the newest rebuild; nil if the marker is another's, or of another run of the server.
BEAT: Final = Script(
    _RUN
    + """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or run ~= ARGV[3] or string.match(known, '^%d+') ~= ARGV[2] then return false end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
return redis.call('HGET', KEYS[1], 'rebuild') or '0'
"""
)
