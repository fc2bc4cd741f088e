import { type Command, Option } from 'commander';
import { write, writeJson, writePairs, writeTable } from '../output.ts';
import { withDaemon } from '../target.ts';
import { collect, formatDuration, parseCount, parseSize } from '../values.ts';

interface CreateFlags {
  language?: string[];
  memory?: number;
  poolSize?: number;
}

interface ReadFlags {
  json?: boolean;
}

const HEAD = ['SESSION', 'STATE', 'PENDING', 'RUNNING', 'EXITED', 'CELLS', 'AGE'];

export function addSession(program: Command): void {
  const session = program.command('session').description('create, list, inspect and remove sessions');
  session
    .command('create')
    .description('create a session; harmless when it exists with the same configuration')
    .argument('<session>')
    .addOption(
      new Option('-l, --language <language>', 'a language it may run; repeat it for more (default: all)').argParser(
        collect,
      ),
    )
    .addOption(
      new Option('--memory <size>', 'heap limit of one JavaScript execution, in MiB or with a unit').argParser(
        parseSize,
      ),
    )
    .addOption(new Option('--pool-size <count>', 'contexts kept warm at most').argParser(parseCount))
    .action((sessionId: string, flags: CreateFlags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { language: enabledLanguages, memory: memoryLimitMb, poolSize: contextPoolSize } = flags;
        await client.createSession(sessionId, { enabledLanguages, memoryLimitMb, contextPoolSize });
        await write(`${sessionId}\n`);
      }),
    );
  session
    .command('ls')
    .description('list the sessions')
    .option('--json', 'one JSON document')
    .action((flags: ReadFlags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const sessions = await client.listSessions();
        if (flags.json) return writeJson(sessions);
        const rows = sessions.map(({ sessionId, state, counts, cells, createdAtMs }) => [
          sessionId,
          state,
          ...[counts.pending, counts.running, counts.exited, cells.length].map(String),
          formatDuration(Math.max(0, Date.now() - createdAtMs)),
        ]);
        return writeTable(HEAD, rows);
      }),
    );
  session
    .command('inspect')
    .description('show all there is to know of one session')
    .argument('<session>')
    .option('--json', 'one JSON document')
    .action((sessionId: string, flags: ReadFlags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const found = await client.getSession(sessionId);
        if (flags.json) return writeJson(found);
        const { state, config, counts, cells, createdAtMs } = found;
        return writePairs([
          ['session', sessionId],
          ['state', state],
          ['created', new Date(createdAtMs).toISOString()],
          ['languages', config.enabledLanguages.join(', ')],
          ['intrinsics', config.enabledIntrinsics.join(', ') || undefined],
          ['memory', config.memoryLimitMb === 0 ? undefined : `${config.memoryLimitMb} MiB`],
          ['pool size', config.contextPoolSize],
          ['executions', `${counts.pending} pending, ${counts.running} running, ${counts.exited} exited`],
          ...cells.map(({ cellKey, pid, state: cellState, executions }): [string, string] => [
            `cell ${cellKey}`,
            `${cellState}, pid ${pid}, ${executions} executions`,
          ]),
        ]);
      }),
    );
  session
    .command('rm')
    .description('stop everything in a session, and remove it when all of it is gone')
    .argument('<session>')
    .action((sessionId: string, _flags: object, command: Command) =>
      withDaemon(command, ({ client }) => client.deleteSession(sessionId)),
    );
}
