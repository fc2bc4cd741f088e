import { readFileSync, writeFileSync } from 'node:fs';
import { toDirectedGraph } from 'xstate/graph';
import { cellMachine } from '../machines/cell.ts';
import { executionMachine } from '../machines/execution.ts';
import { sessionMachine } from '../machines/session.ts';

/**
 * Draws `docs/machines.md` from the machines themselves. With `--check` it writes nothing and fails when the file says
 * something else.
 */

const TARGET = new URL(import.meta.url.endsWith('.ts') ? './machines.md' : '../../docs/machines.md', import.meta.url);

type Graph = ReturnType<typeof toDirectedGraph>;

const MACHINES = [
  {
    title: 'Execution',
    machine: executionMachine,
    about: 'One execution, from accepted to gone; `signaled` is the ladder.',
  },
  { title: 'Session', machine: sessionMachine, about: 'One session, supervisor of its executions.' },
  { title: 'Cell', machine: cellMachine, about: 'One cell: an operating system process that holds executions.' },
];

/** State ids hold dots, which Mermaid does not take. */
const nodeName = (id: string): string => id.replaceAll('.', '_');

/** `xstate.after.grace.execution.signaled.graceful` is drawn as `after grace`; a transition without an event as its guard. */
function edgeLabel(eventType: string, guard: unknown): string {
  const after = /^xstate\.after\.([^.]+)\./.exec(eventType);
  const name = after ? `after ${after[1]}` : eventType;
  const guardName = typeof guard === 'string' ? guard : (guard as { type?: string } | undefined)?.type;
  return `${name}${guardName ? ` [${guardName}]` : ''}`.trim();
}

function draw(node: Graph, indent: string): string[] {
  const { initial } = node.stateNode;
  const lines: string[] = [];
  const [first] = initial?.target ?? [];
  if (first !== undefined) lines.push(`${indent}[*] --> ${nodeName(first.id)}`);
  for (const [index, child] of node.children.entries()) {
    const name = nodeName(child.id);
    if (index > 0 && node.stateNode.type === 'parallel') lines.push(`${indent}--`);
    lines.push(`${indent}state "${child.stateNode.key}" as ${name}`);
    if (child.children.length > 0) {
      lines.push(`${indent}state ${name} {`, ...draw(child, `${indent}  `), `${indent}}`);
    }
    if (child.stateNode.type === 'final') lines.push(`${indent}${name} --> [*]`);
  }
  return lines;
}

/** Transitions of the node and of everything below it. Those of the root leave from any state: they are listed, not drawn. */
function edges(node: Graph): string[] {
  const own = node.edges
    .filter(({ source, target, transition }) => source !== target || node.children.length === 0 || transition.reenter)
    .map(({ source, target, label, transition }) => {
      const text = edgeLabel(label.text, transition.guard);
      return `  ${nodeName(source.id)} --> ${nodeName(target.id)}: ${text}`;
    });
  // The graph leaves out transitions that need no event.
  const always = (node.stateNode.always ?? []).flatMap(({ source, target = [], guard }) =>
    target.map(({ id }) => `  ${nodeName(source.id)} --> ${nodeName(id)}: ${edgeLabel('always', guard)}`),
  );
  return [...(node.stateNode.parent === undefined ? [] : own), ...always, ...node.children.flatMap(edges)];
}

function fromAnywhere(root: Graph): string[] {
  return root.edges
    .filter(({ target }) => target.id !== root.id)
    .map(
      ({ target, label, transition }) => `- \`${edgeLabel(label.text, transition.guard)}\` leads to \`${target.id}\``,
    );
}

const parts = MACHINES.map(({ title, machine, about }) => {
  const graph = toDirectedGraph(machine);
  const anywhere = fromAnywhere(graph);
  return [
    `## ${title}`,
    '',
    about,
    '',
    '```mermaid',
    'stateDiagram-v2',
    ...draw(graph, '  '),
    ...new Set(edges(graph)),
    '```',
    ...(anywhere.length > 0 ? ['', 'From any state that does not say otherwise:', '', ...new Set(anywhere)] : []),
    '',
  ].join('\n');
});
const text = ['# Machines', '', 'Drawn from `machines/` by `npm run docs`; not written by hand.', '', ...parts].join(
  '\n',
);

if (process.argv.includes('--check')) {
  if (readFileSync(TARGET, 'utf8') !== text) {
    process.stderr.write('docs/machines.md is not what the machines say; run `npm run docs`\n');
    process.exitCode = 1;
  }
} else {
  writeFileSync(TARGET, text);
}
