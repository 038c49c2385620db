import doctest,sys
import qvae.llm.vocabulary,qvae.llm.grammar,qvae.llm.processor
for m in (qvae.llm.vocabulary,qvae.llm.grammar,qvae.llm.processor): print(doctest.testmod(m,extraglobs={k:v for k,v in vars(m).items() if not k.startswith('__')},optionflags=doctest.IGNORE_EXCEPTION_DETAIL))
