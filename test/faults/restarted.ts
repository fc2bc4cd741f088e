import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect } from 'vitest';
import type { Exited } from '../../src/gen/elide/cell/v1/cell.ts';
import type { Snippet } from '../../src/supervisor/requests.ts';
import { readEndRecord } from '../../src/wire/end-record.ts';
import { childrenOf, eventually, processesWith } from '../support/daemon.ts';
import { endsWritten, type FaultNode } from './node.ts';

/** Counts as fast as it can, asked by a line of its input, or on its own every 5 ms; ends with code 7 when told. */
export const COUNTER = {
  javascript: `
    let count = 0;
    setInterval(() => console.log(count++), 5);
    process.stdin.on('data', (data) => { console.log('got ' + data); if (String(data).includes('end')) process.exit(7); });
    console.log('ready');`,
  python: `
import os, select, sys
print('ready', flush=True)
count = 0
while True:
    if select.select([0], [], [], 0.005)[0]:
        text = os.read(0, 100).decode()
        print('got', text, flush=True)
        if 'end' in text:
            sys.exit(7)
    print(count, flush=True)
    count += 1`,
};

export const LANGUAGES = ['javascript', 'python'] as const;

/** Says `ready`, and ends with code 3 once there is this file. */
export const endsOnce = (go: string, before = '') =>
  `setInterval(() => { if (require('fs').existsSync('${go}')) { ${before} process.exit(3); } }, 20); console.log('ready');`;

/** Has execution `e` end while there is no daemon, and its cell go then: only what that has written down tells of the end. */
export async function endUnseen(node: FaultNode): Promise<void> {
  const go = join(node.root, 'go');
  await node.ready({ executionId: 'e', code: endsOnce(go) });
  await node.end();
  writeFileSync(go, '');
  await eventually('it has ended', () => endsWritten(node).length > 0);
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
}

/** It has counted from 0 on, as far as it came, without a gap. */
export function expectCounted(stdout: string): void {
  const counted = stdout.split('\n').filter((line) => /^\d+$/.test(line));
  expect(counted.length).toBeGreaterThan(0);
  expect(counted).toEqual(counted.map((_, index) => String(index)));
}

/** The monotonic times that the journal has of the one execution that has exited, and of the last end in its session. */
export function endsJournaled(node: FaultNode): { started: number; exited: number; lastExit: number } {
  using database = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const ends = database.prepare(`
    SELECT json_extract(event, '$.monotonicMs') AS started, exited_monotonic_ms AS exited,
      json_extract(last_exit, '$.monotonicMs') AS lastExit
    FROM executions JOIN sessions USING (session_key) JOIN events USING (number)
    WHERE exited_at_ms IS NOT NULL AND event ->> 'state' = 'running' AND event ->> 'warning' IS NULL`);
  const [found, ...others] = ends.all() as { started: number; exited: number; lastExit: number }[];
  if (found === undefined || others.length > 0) throw new Error(`${others.length} other ends`);
  return { ...found };
}

/** The one end that a cell has written down. */
export function endWritten(node: FaultNode): { path: string; end: Exited } {
  const [name = '', ...others] = endsWritten(node);
  const path = join(node.stateDir, 'daemon', 'cells', name);
  const [end, ...more] = readEndRecord(path);
  if (end === undefined || others.length + more.length > 0) throw new Error('not one end');
  return { path, end };
}

/** The zygote of the one cell with Python guests of session `s`, in which `warm` answers each line. */
export async function startZygote(node: FaultNode): Promise<number> {
  const code = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print('heard', line, flush=True)";
  await node.ready({ executionId: 'warm', language: 'python', code, stdin: true });
  let zygotes: number[] = [];
  await eventually('its zygote is seen', () => {
    const children = node.cellPids().flatMap((cell) => childrenOf(cell));
    zygotes = processesWith('zygote.py').filter((pid) => children.includes(pid));
    return zygotes.length === 1;
  });
  return zygotes[0] as number;
}

/** Hands in Python for a cell whose zygote stands still, and waits until the cell has it: nothing of it runs by then. */
export async function handIn(
  node: FaultNode,
  snippet: Pick<Snippet, 'executionId' | 'code' | 'timeoutMs'>,
): Promise<void> {
  const python = { sessionId: 's', language: 'python' };
  // They take what was forked ahead: the next one needs the zygote.
  for (const executionId of ['first', 'second', 'third']) {
    await node.client.executeSnippet({ ...python, executionId, code: 'import time\ntime.sleep(600)' });
  }
  await node.client.executeSnippet({ ...python, ...snippet });
  await eventually('a cell is about to have it', () => cellHas(node, snippet.executionId));
  // The daemon tells the cell once it hears that this is written: before it hears of what is written later.
  await node.client.createSession('later');
  // What the cell has not read yet when its daemon goes may be lost: it reads one after the other.
  await node.client.writeInput('s', 'warm', Buffer.from(`${snippet.executionId}\n`));
  await node.printed('warm', `heard ${snippet.executionId}\n`);
}

/** A cell was told of this execution, or is about to be: the journal says so. */
export function cellHas(node: FaultNode, executionId: string): boolean {
  using database = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const row = database.prepare('SELECT cell_key FROM executions WHERE execution_id = ?').get(executionId);
  return typeof row?.cell_key === 'string';
}
