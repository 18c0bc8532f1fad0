// The pictures that this browser keeps, in IndexedDB.

const STORE = "pictures";

/** Open the store. Where the browser has none (some private windows), pictures live as long as the page. */
export async function openStore() {
  try {
    const opening = indexedDB.open("krea2", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
    return new PictureStore(await settled(opening));
  } catch {
    return new PictureStore(null);
  }
}

class PictureStore {
  constructor(database) {
    this.database = database;
  }

  get isLasting() {
    return this.database !== null;
  }

  /** All pictures, the oldest first. */
  async all() {
    return (await this.#run("readonly", (store) => store.getAll())) ?? [];
  }

  async add(picture) {
    await this.#run("readwrite", (store) => store.add(picture));
  }

  /** Delete the pictures with these ids, one at least. */
  async delete(...ids) {
    await this.#run("readwrite", (store) => ids.map((id) => store.delete(id)).at(-1));
  }

  /** Resolves when what it did is there to stay: until then a reload, or a full disk, may undo it. */
  async #run(mode, operation) {
    if (!this.database) return undefined;
    const transaction = this.database.transaction(STORE, mode);
    const request = operation(transaction.objectStore(STORE));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    return request.result;
  }
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}
