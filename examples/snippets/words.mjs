/** The word that a text has most often, and how often. */
export function mostCommon(text) {
  const counts = new Map();
  for (const [word] of text.toLowerCase().matchAll(/[a-z]{3,}/g)) counts.set(word, (counts.get(word) ?? 0) + 1);
  return [...counts].sort(([, a], [, b]) => b - a)[0];
}
