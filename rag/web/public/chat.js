// What Chainlit's page lacks: a strip above the composer that says what is asked – table, version,
// filters – and whether the table has moved on; names for buttons that have none.
// It knows /rag/standing and the server's window messages; it knows nothing of questions and
// answers. All text is set as text, never as HTML.
(() => {
  'use strict';

  const REFRESH_MS = 30_000;
  const BUILDING_MS = 2_000;
  const ROOT = new URL('..', document.currentScript.src);
  const NAMES = {
    '#chat-submit': 'Send',
    '#stop-button': 'Stop',
    '#chat-settings-open-modal': 'Settings',
    '#new-chat-button': 'New chat',
    '#user-nav-button': 'Account',
    '#side-view-title button': 'Close',
    '[role="dialog"]:has(#side-view-content)': 'Row',
    '.edit-message': 'Edit',
    'div:has(> #password) button[type="button"]': 'Show the password',
    '.positive-feedback-off, .positive-feedback-on': 'Helpful',
    '.negative-feedback-off, .negative-feedback-on': 'Not helpful',
    'button:has(> svg.lucide-copy)': 'Copy the message',
    'button:has(> svg.lucide-arrow-down)': 'To the latest message'
  };
  const OURS = new Set(Object.values(NAMES));
  const NAMING_MS = 250;

  let standing = null;
  let asking = { filters: [], version: null };
  let work = null; // what the sync at hand says; null when there is none
  let isLooking = false;
  let nextLook = 0;

  // --- the strip ------------------------------------------------------------------------------

  const make = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  };

  const strip = make('div');
  strip.id = 'rag-strip';
  const status = make('div', 'rag-standing');
  status.setAttribute('role', 'status');
  const button = make('button', 'rag-sync', 'Sync now');
  button.type = 'button';
  button.dataset.testid = 'sync';
  const chosen = make('ul', 'rag-asking');
  chosen.setAttribute('aria-label', 'Asked for');
  strip.append(status, button, chosen);

  const number = new Intl.NumberFormat('en-US');
  const counts = (changed) =>
    [
      ['added', '+', changed?.added],
      ['updated', '~', changed?.updated],
      ['deleted', '−', changed?.deleted]
    ]
      .filter(([, , n]) => n)
      .map(([what, sign, n]) =>
        what === 'updated'
          ? `${number.format(n)} changed`
          : `${sign}${number.format(n)} ${n === 1 ? 'row' : 'rows'}`
      )
      .join(', ');

  const isBehind = (s) => s.version !== null && s.latest !== null && s.latest > s.version;

  // Returns [kind, words] for each piece of the line.
  const pieces = (s) => {
    const said = [['name', s.table ?? 'The table']];
    if (s.version !== null) said.push(['version', `v${s.version}`]);
    if (work) return [...said, [work.kind, work.text]];
    if (s.building) return [...said, ['busy', s.building.replace(/^process .*?, /, '')]];
    if (s.problem) return [...said, ['problem', s.problem]];
    if (s.version === null) return [...said, ['problem', 'not indexed yet']];
    if (!isBehind(s)) return [...said, ['fresh', 'up to date']];
    const more = counts(s.changed);
    return [...said, ['behind', `table is at v${s.latest}${more ? `: ${more}` : ''}`]];
  };

  const draw = () => {
    const s = standing;
    strip.hidden = !s;
    if (!s) return;
    const said = pieces(s);
    const key = JSON.stringify(said);
    // a screen reader says each change, so nothing is written that says the same
    if (status.dataset.said !== key) {
      status.dataset.said = key;
      status.replaceChildren(
        ...said.map(([kind, words]) => {
          const piece = make('span', `rag-${kind}`, words);
          piece.title = words;
          return piece;
        })
      );
    }
    button.hidden = !(s.is_admin && isBehind(s)) || s.building !== null;
    // not `disabled`: that would drop the focus of whoever pressed it
    button.setAttribute('aria-disabled', String(work?.kind === 'busy'));
    const asked = [
      ...(asking.version === null ? [] : [['as-of', `as of v${asking.version}`]]),
      ...asking.filters.map((filter) => ['filter', filter])
    ];
    chosen.hidden = asked.length === 0;
    chosen.replaceChildren(...asked.map(([kind, words]) => make('li', `rag-${kind}`, words)));
  };

  // --- the server -----------------------------------------------------------------------------

  const json = async (path, options) => {
    const answer = await fetch(new URL(path, ROOT), { cache: 'no-store', ...options });
    const isJson = answer.headers.get('content-type')?.startsWith('application/json');
    return isJson ? [answer.ok, await answer.json()] : [false, {}];
  };

  const ask = async () => {
    const before = standing?.version;
    try {
      const [isOk, value] = await json('rag/standing');
      standing = isOk ? value : null;
      // Chainlit passes it on to the server, which offers the versions that there are now
      if (before !== undefined && standing && standing.version !== before) {
        window.postMessage('rag:moved', window.location.origin);
      }
    } catch {
      standing = null; // away; Chainlit says so itself
    }
    draw();
  };

  const look = async () => {
    if (isLooking) return;
    isLooking = true;
    clearTimeout(nextLook);
    try {
      // without a composer nobody is signed in, or the page is another
      if (!document.hidden && document.getElementById('message-composer')) await ask();
    } finally {
      const isBuilding = standing && (standing.building || standing.version === null);
      nextLook = setTimeout(look, isBuilding ? BUILDING_MS : REFRESH_MS);
      isLooking = false;
    }
  };

  const sync = async () => {
    if (work?.kind === 'busy') return;
    work = { kind: 'busy', text: `syncing to v${standing.latest} …` };
    draw();
    let trouble = null;
    try {
      const [isOk, value] = await json('rag/sync', { method: 'POST' });
      if (!isOk) trouble = value.problem ?? 'The sync was refused.';
    } catch {
      trouble = 'The server could not be reached; the sync may still be running.';
    }
    work = trouble ? { kind: 'problem', text: trouble } : null;
    await look();
    draw();
    if (trouble) setTimeout(() => ((work = null), draw()), 15_000);
    else if (button.hidden) document.getElementById('chat-input')?.focus();
  };
  button.addEventListener('click', sync);

  // --- the page -------------------------------------------------------------------------------

  // Chainlit's React makes the composer anew now and then, and knows nothing of the strip.
  const settle = () => {
    const composer = document.getElementById('message-composer');
    if (composer && composer.previousElementSibling !== strip) {
      composer.before(strip);
      if (!standing) look();
    }
  };

  const nameButtons = () => {
    for (const [selector, name] of Object.entries(NAMES)) {
      for (const found of document.querySelectorAll(selector)) {
        const label = found.getAttribute('aria-label');
        // React makes another button of one that was named here: Send of Stop
        if (!label || (label !== name && OURS.has(label))) found.setAttribute('aria-label', name);
      }
    }
  };

  // On a narrow screen Chainlit leaves the address as it was, and a reload would lose the chat.
  const nameThread = (id) => {
    const isAt = () => window.location.pathname.endsWith(`/thread/${id}`);
    setTimeout(() => {
      if (!isAt() && window.location.href === ROOT.href) {
        window.history.replaceState(window.history.state, '', new URL(`thread/${id}`, ROOT));
      }
    }, NAMING_MS);
  };

  // Once for all the changes of a while: an answer that streams changes the page all the time.
  const oncePer = (schedule, act) => {
    let isDue = false;
    return () => {
      if (isDue) return;
      isDue = true;
      schedule(() => {
        isDue = false;
        act();
      });
    };
  };
  const settleSoon = oncePer(requestAnimationFrame, settle);
  const nameSoon = oncePer((act) => setTimeout(act, NAMING_MS), nameButtons);

  window.addEventListener('message', ({ source, origin, data }) => {
    if (source !== window || origin !== location.origin) return;
    if (data?.rag === 'thread') nameThread(String(data.id));
    if (data?.rag !== 'asking') return;
    asking = {
      filters: Array.isArray(data.filters) ? data.filters.map(String) : [],
      version: Number.isInteger(data.version) ? data.version : null
    };
    draw();
  });
  document.addEventListener('click', (event) => {
    // a mark is no address: Chainlit would open it in another tab
    if (event.target.closest?.('a[href^="#cite-"], a[href="#unfounded"]')) event.preventDefault();
  });
  window.addEventListener('focus', look);
  document.addEventListener('visibilitychange', look);

  draw();
  const watcher = new MutationObserver(() => (settleSoon(), nameSoon()));
  watcher.observe(document.documentElement, { childList: true, subtree: true });
  settle();
  look();
})();
