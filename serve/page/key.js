// The field for an API key: shown where the service asks for one.

/** Returns askKey(refused): a promise of the key that the person gives; those who ask at the same time share it. */
export function keyField() {
  const form = document.getElementById("key");
  const field = document.getElementById("key-value");
  const text = form.querySelector("p");
  const first = text.textContent;
  let asked = null;
  let give = null;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    form.hidden = true;
    asked = null;
    give(field.value.trim());
  });
  return (refused) => {
    text.textContent = refused ? "The service refused this key. Try another." : first;
    asked ??= new Promise((resolve) => {
      give = resolve;
      form.hidden = false;
      field.value = "";
      field.focus();
    });
    return asked;
  };
}
