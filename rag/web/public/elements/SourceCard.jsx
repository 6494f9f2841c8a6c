// One row in the side panel: as it was cited, and what became of it since (GET /rag/row). What was
// cited is in the props, so the panel shows it without the server too. Everything is printed as
// text: a row that holds HTML or Markdown shows it and runs nothing.
import { useEffect, useRef, useState } from 'react';
import { useSetRecoilState } from 'recoil';
import { sideViewState } from '@chainlit/react-client';

const ICONS = { unchanged: '✓', changed: '✎', deleted: '⌫', unknown: '?', loading: '…' };
const LOADING = { fate: 'loading', sentence: 'Comparing with the table …', changes: [] };
const AWAY = {
  fate: 'unknown',
  sentence: 'The table cannot be asked right now; this is the row as it was cited.',
  changes: []
};
const DIALOGS = '[role="dialog"], [role="alertdialog"], [role="menu"], [role="listbox"]';

const copied = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // no clipboard without https, or not allowed
    const area = document.createElement('textarea');
    area.value = text;
    area.style.cssText = 'position:fixed;opacity:0';
    // inside the panel: on a phone Chainlit keeps the focus there
    (document.querySelector('.rag-panel') ?? document.body).append(area);
    area.select();
    const isDone = document.execCommand('copy');
    area.remove();
    return isDone;
  }
};

// The words that two values begin and end with, and what differs between.
const compared = (before, after) => {
  const [a, b] = [before, after].map((text) => (text ?? '').split(/(\s+)/));
  let head = 0;
  while (head < Math.min(a.length, b.length) && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < Math.min(a.length, b.length) - head && a.at(-1 - tail) === b.at(-1 - tail)) tail += 1;
  const cut = (words) => [
    words.slice(0, head).join(''),
    words.slice(head, words.length - tail).join(''),
    words.slice(words.length - tail).join('')
  ];
  return [cut(a), cut(b)];
};

function Copy({ label, text }) {
  const [said, setSaid] = useState('');
  const back = useRef(null);
  const onClick = async (event) => {
    const button = event.currentTarget;
    setSaid((await copied(text)) ? 'Copied' : 'Not copied');
    button.focus({ preventScroll: true });
    clearTimeout(back.current);
    back.current = setTimeout(() => setSaid(''), 2000);
  };
  useEffect(() => () => clearTimeout(back.current), []);
  return (
    <button type="button" className="rag-action" onClick={onClick}>
      <span aria-live="polite">{said || label}</span>
    </button>
  );
}

function Relevance({ value }) {
  if (value === null) return null;
  return (
    <div className="rag-relevance">
      <span className="rag-bar">
        <span style={{ width: `${100 * value}%` }} />
      </span>
      <span>relevance {value.toFixed(2)}</span>
    </div>
  );
}

function Value({ value }) {
  return value === null ? <span className="rag-none">empty</span> : value;
}

function Change({ name, before, after }) {
  const [was, is] = compared(before, after);
  const shown = (value, [head, middle, tail]) =>
    value === null ? (
      <Value value={null} />
    ) : (
      <span>
        {head}
        {middle ? <b>{middle}</b> : null}
        {tail}
      </span>
    );
  return (
    <div className="rag-change">
      <dt dir="auto">{name}</dt>
      <dd dir="auto">
        <span className="rag-when">was</span>
        <del>{shown(before, was)}</del>
      </dd>
      <dd dir="auto">
        <span className="rag-when">now</span>
        <ins>{shown(after, is)}</ins>
      </dd>
    </div>
  );
}

function Fate({ live }) {
  const { fate, sentence, changes } = live;
  return (
    <div className="rag-fate" data-fate={fate} data-testid="fate">
      <p role="status">
        <span aria-hidden="true">{ICONS[fate]}</span> <span>{sentence}</span>
      </p>
      {changes.length === 0 ? null : (
        <dl aria-label="What changed" data-testid="changes">
          {changes.map((change) => (
            <Change key={change.name} {...change} />
          ))}
        </dl>
      )}
    </div>
  );
}

function Columns({ columns }) {
  return (
    <table className="rag-columns" data-testid="columns">
      <tbody>
        {columns.map(([name, value]) => (
          <tr key={name}>
            <th scope="row" dir="auto">
              {name}
            </th>
            <td dir="auto">
              <Value value={value} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

const address = (path, key, version) => {
  const url = new URL(apiClient.buildEndpoint(path));
  url.search = new URLSearchParams({ key, version }); // Chainlit leaves an empty one there
  return url.href;
};

// What became of the row, as the server knows it now.
const useLive = (address) => {
  const [live, setLive] = useState(LOADING);
  useEffect(() => {
    const gone = new AbortController();
    fetch(address, { signal: gone.signal, cache: 'no-store' })
      .then((answer) => answer.json())
      .then((value) => {
        if (gone.signal.aborted) return;
        setLive(value.fate ? value : { ...AWAY, sentence: value.problem ?? AWAY.sentence });
      })
      .catch(() => gone.signal.aborted || setLive(AWAY));
    return () => gone.abort();
  }, [address]);
  return live;
};

// Keyboard and screen reader follow the click into the panel, and back to where they were.
const useFocus = (panel, close) => {
  useEffect(() => {
    const title = document.querySelector('#side-view-title button');
    title?.setAttribute('aria-label', 'Close');
    panel.current?.focus({ preventScroll: true });
    const onKey = (event) => {
      const isOurs = event.key === 'Escape' && !event.defaultPrevented;
      // on a phone the panel is a dialog, which closes itself
      if (isOurs && !document.querySelector(DIALOGS)) close();
    };
    document.addEventListener('keydown', onKey);
    return () => {
      document.removeEventListener('keydown', onKey);
      setTimeout(() => {
        const opener = document.querySelector('[data-rag-opener]');
        const isFree = document.activeElement === null || document.activeElement === document.body;
        // another row may have taken this one's place
        if (!document.getElementById('side-view-content') && isFree) opener?.focus();
      }, 50);
    };
  }, []);
};

export default function SourceCard() {
  const { n, title, relevance, segments, table, version, row, is_citable: isCitable } = props;
  const setSideView = useSetRecoilState(sideViewState);
  const panel = useRef(null);
  const live = useLive(address('/rag/row', row, version));
  const link = address('/row', row, version);
  const passage = segments.map((segment) => segment.text).join('');
  // an index keeps what it was told to; the table has every column
  const isFuller = live.columns?.length > props.columns.length;
  useFocus(panel, () => setSideView(undefined));

  return (
    <article
      ref={panel}
      tabIndex={-1}
      className="rag-panel"
      data-testid="source"
      aria-label={isCitable === false ? `Row: ${title}` : `Source ${n}: ${title}`}
    >
      <header>
        <h2 dir="auto">{title}</h2>
        <Relevance value={relevance} />
      </header>
      <blockquote className="rag-passage" data-testid="passage" dir="auto">
        {segments.map((segment, i) =>
          segment.is_cited ? (
            <mark key={i}>{segment.text}</mark>
          ) : (
            <span key={i}>{segment.text}</span>
          )
        )}
      </blockquote>
      <div className="rag-actions">
        <Copy label="Copy passage" text={passage} />
        <Copy label="Copy link" text={link} />
        <a className="rag-action" href={link} target="_blank" rel="noopener noreferrer">
          Open page <span aria-hidden="true">↗</span>
        </a>
      </div>
      <Fate live={live} />
      <Columns columns={isFuller ? live.columns : props.columns} />
      <footer className="rag-origin" data-testid="origin">
        {table} · version {version} · row {row}
      </footer>
    </article>
  );
}
