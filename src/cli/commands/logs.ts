import type { Command } from 'commander';
import { write, writeJson } from '../output.ts';
import { findExecution, sessionOption, withDaemon } from '../target.ts';

interface Flags {
  follow?: boolean;
  stdout?: boolean;
  stderr?: boolean;
  session?: string;
  json?: boolean;
}

export function addLogs(program: Command): void {
  program
    .command('logs')
    .description('write what an execution wrote, its stdout to stdout and its stderr to stderr, byte for byte')
    .argument('<execution>')
    .addOption(sessionOption())
    .option('-f, --follow', 'until its end')
    .option('--stdout', 'its stdout only')
    .option('--stderr', 'its stderr only')
    .option('--json', 'one JSON object a line for each piece, with its text as UTF-8')
    .action((executionId: string, flags: Flags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { sessionId } = await findExecution(client, executionId, flags.session);
        const streams = (['stdout', 'stderr'] as const).filter((name) => flags[name] || flags.stdout === flags.stderr);
        const decoders = { stdout: newDecoder(), stderr: newDecoder() };
        const last = { stdout: { position: 0, atMs: 0 }, stderr: { position: 0, atMs: 0 } };
        const options = { streams, follow: flags.follow === true };
        for await (const { stream, position, atMs, data } of client.streamOutput(sessionId, executionId, options)) {
          if (!flags.json) {
            await write(data, stream);
          } else {
            const text = decoders[stream].decode(data, { stream: true });
            await writeJson({ stream, position, bytes: data.byteLength, atMs, text });
            last[stream] = { position: position + data.byteLength, atMs };
          }
        }
        // What ends in the middle of a character.
        for (const stream of streams) {
          const text = decoders[stream].decode();
          if (text !== '') await writeJson({ stream, ...last[stream], bytes: 0, text });
        }
      }),
    );
}

/** Takes nothing away: what rebuilds the output from its text is to have all of it. */
function newDecoder(): TextDecoder {
  return new TextDecoder('utf-8', { ignoreBOM: true });
}
