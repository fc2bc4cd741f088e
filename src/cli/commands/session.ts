import { type Command, Option } from 'commander';
import { ceilingOptions, ceilingsOf, type LimitFlags, limitOptions, limitsOf } from '../limits.ts';
import { write, writeJson, writePairs, writeTable } from '../output.ts';
import { ANSWER, withDaemon } from '../target.ts';
import { collect, formatBytes, formatDuration, parseBytes, parseCount, parseDuration } from '../values.ts';

interface CreateFlags extends LimitFlags {
  language?: string[];
  memory?: number;
  poolSize?: number;
  grace?: number;
  maxRunning?: number;
  maxQueued?: number;
  weight?: number;
  idleTtl?: number;
  ttl?: number;
  keep?: number;
  keepExecutions?: number;
  outputBudget?: number;
}

interface RemoveFlags {
  force?: boolean;
  ifIdle?: boolean;
}

interface ReadFlags {
  json?: boolean;
}

const HEAD = ['SESSION', 'STATE', 'PENDING', 'RUNNING', 'EXITED', 'CELLS', 'AGE'];

export function addSession(program: Command): void {
  const session = program.command('session').description('create, list, inspect and remove sessions');
  const create = session
    .command('create')
    .description('create a session; harmless when it exists with the same configuration')
    .argument('<session>')
    .addOption(
      new Option('-l, --language <language>', 'a language it may run; repeat it for more (default: all)').argParser(
        collect,
      ),
    )
    .addOption(
      new Option('--pool-size <count>', 'contexts kept warm at most (0: as the daemon has it)').argParser(parseCount),
    )
    .addOption(
      new Option(
        '--max-running <count>',
        'executions that run at one time at most (0: as many as there are places)',
      ).argParser(parseCount),
    )
    .addOption(
      new Option('--max-queued <count>', 'executions that wait at most (0: as the daemon has it)').argParser(
        parseCount,
      ),
    )
    .addOption(
      new Option('--weight <count>', 'share of the node when sessions compete (default: 100)').argParser(parseCount),
    )
    .addOption(
      new Option('--idle-ttl <duration>', 'delete it once nothing waited or ran in it for so long').argParser(
        parseDuration,
      ),
    )
    .addOption(
      new Option('--ttl <duration>', 'delete it so long after its creation, whatever runs').argParser(parseDuration),
    )
    .addOption(new Option('--keep <duration>', 'forget executions so long after their end').argParser(parseDuration))
    .addOption(
      new Option('--keep-executions <count>', 'finished executions that are kept at most').argParser(parseCount),
    )
    .addOption(
      new Option('--output-budget <size>', 'output of all executions, beyond which the oldest goes').argParser(
        parseBytes,
      ),
    )
    .addOption(
      new Option('--grace <duration>', "time between signal and force (default: the daemon's)").argParser(
        parseDuration,
      ),
    )
    .addHelpText('after', '\nThe limits are what an execution has that does not say; --memory is its ceiling too.')
    .action((sessionId: string, flags: CreateFlags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { language: enabledLanguages, memory: memoryLimitMb, poolSize: contextPoolSize } = flags;
        const { maxRunning, maxQueued, weight, grace: graceMs, idleTtl: idleTtlMs, ttl: totalTtlMs } = flags;
        const { keep: retainedAgeMs, keepExecutions: retainedExecutions, outputBudget: outputBudgetBytes } = flags;
        const executionDefaults = { ...limitsOf(flags), graceMs };
        const executionCeilings = ceilingsOf(flags);
        const config = { enabledLanguages, memoryLimitMb, contextPoolSize, maxRunning, maxQueued, weight };
        const life = { idleTtlMs, totalTtlMs, retainedAgeMs, retainedExecutions, outputBudgetBytes };
        await client.createSession(sessionId, { ...config, ...life, executionDefaults, executionCeilings }, ANSWER);
        await write(`${sessionId}\n`);
      }),
    );
  for (const option of [...limitOptions(), ...ceilingOptions()]) create.addOption(option);
  session
    .command('ls')
    .description('list the sessions')
    .option('--json', 'one JSON document')
    .action((flags: ReadFlags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const sessions = await client.listSessions(ANSWER);
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
        const found = await client.getSession(sessionId, ANSWER);
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
          ['weight', config.weight],
          ['running at most', config.maxRunning || undefined],
          ['queued at most', config.maxQueued],
          ['idle ttl', config.idleTtlMs && formatDuration(config.idleTtlMs)],
          ['ttl', config.totalTtlMs && formatDuration(config.totalTtlMs)],
          ['kept for', config.retainedAgeMs && formatDuration(config.retainedAgeMs)],
          ['kept at most', config.retainedExecutions],
          ['output budget', config.outputBudgetBytes && formatBytes(config.outputBudgetBytes)],
          ...Object.entries(config.executionDefaults).map(pairOf('default')),
          ...Object.entries(config.executionCeilings).map(pairOf('ceiling')),
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
    .description('stop everything in a session, and remove it when all of it is gone; its executions stay for a while')
    .argument('<session>')
    .option('--force', 'without a grace period')
    .addOption(new Option('--if-idle', 'only when nothing runs or waits in it').conflicts('force'))
    .action((sessionId: string, { force, ifIdle }: RemoveFlags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        // How long the deletion takes the guests say; whether anybody answers is seen before.
        await client.health(ANSWER);
        await client.deleteSession(sessionId, { force, refuseIfBusy: ifIdle });
      }),
    );
}

function pairOf(kind: string) {
  return ([name, value]: [string, unknown]): [string, string] => [`${kind} ${name}`, String(value)];
}
