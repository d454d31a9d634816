// The words that name segments.

/** Words of a comma or line separated text, each once whatever its case. */
export function wordsOf(text) {
  const found = new Map();
  for (const piece of text.split(/[,;\n]/)) {
    const word = piece.trim().replace(/\s+/g, " ");
    const key = word.toLowerCase();
    if (word && !found.has(key)) found.set(key, word);
  }
  return [...found.values()];
}

/** The part of a request that says which words: {} without any. */
export function namingOf(id, text) {
  if (id) return { vocabulary_id: id };
  const vocabulary = wordsOf(text);
  return vocabulary.length ? { vocabulary } : {};
}

/** A vocabulary of the service as a person reads it. */
export function titleOf({ id, classes }) {
  return `${id.replaceAll("_", " ")} (${classes} classes)`;
}
