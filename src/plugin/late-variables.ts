import type { Snippet } from '../supervisor/requests.ts';

/** Variables that Node reads when it starts, which is before it knows whose it is. */
const READ_AT_START = [
  'NODE_OPTIONS',
  'NODE_PATH',
  'NODE_EXTRA_CA_CERTS',
  'NODE_NO_WARNINGS',
  'NODE_DEBUG',
  'NODE_USE_ENV_PROXY',
];

/** What is to be said of variables that are set too late to have an effect, for people. */
export function lateVariables({ language, env = {} }: Snippet): string[] {
  const names = /^py/i.test(language) ? [] : READ_AT_START.filter((name) => name in env);
  if (names.length === 0) return [];
  return [
    `without effect, as Node has started when the task begins: ${names.join(', ')}; what the task starts has them`,
  ];
}
