import doctest,sys,importlib
for n in sys.argv[1:]:
    m=importlib.import_module(n)
    print(n,doctest.testmod(m,extraglobs={k:v for k,v in vars(m).items() if not k.startswith('__')},optionflags=doctest.IGNORE_EXCEPTION_DETAIL))
