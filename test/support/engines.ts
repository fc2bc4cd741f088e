/** What runs a guest: JavaScript in a thread, JavaScript in a process, Python. */
export const ENGINES = ['javascript', 'process', 'python'] as const;
export type GuestEngine = (typeof ENGINES)[number];

/** How that is asked for. */
export function languageOf(engine: GuestEngine): { language: 'javascript' | 'python'; isolation?: 'process' } {
  return engine === 'process' ? { language: 'javascript', isolation: 'process' } : { language: engine };
}
